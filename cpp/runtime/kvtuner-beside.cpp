// What lies beside a cache in saved states: the blocks of its cells, and exact rows.

#include "kvtuner-cache.h"

#include "llama-io.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <stdexcept>
#include <string>

void kvtuner_cache::write_beside(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                                 const std::vector<std::pair<uint32_t, uint32_t>> & ranges) {
    write_blocks(cache, io, stream, ranges);
    write_exact(cache, io, stream, ranges);
}

void kvtuner_cache::read_beside(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                                const std::vector<uint32_t> & cells) {
    read_blocks(cache, io, stream, cells);
    read_exact(cache, io, stream, cells);
}

void kvtuner_cache::write_blocks(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                                 const std::vector<std::pair<uint32_t, uint32_t>> & ranges) {
    kvtuner_center_blocks & blocks = cache.centers.blocks;
    if (!blocks.is_used()) {
        return;
    }
    for (const auto & [begin, end] : ranges) {
        io.write(blocks.of_stream(stream).data() + begin, (end - begin) * sizeof(int32_t));
    }
}

void kvtuner_cache::read_blocks(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                                const std::vector<uint32_t> & cells) {
    kvtuner_center_blocks & blocks = cache.centers.blocks;
    if (!blocks.is_used()) {
        return;
    }
    std::vector<int32_t> read(cells.size());
    io.read(read.data(), read.size() * sizeof(int32_t));
    for (size_t i = 0; i < read.size(); ++i) {
        if (read[i] < 0 || read[i] >= (int32_t)blocks.n_blocks()) {
            throw std::runtime_error("the state has a key of block " + std::to_string(read[i]) + ", the context " +
                                     std::to_string(blocks.n_blocks()) + " blocks: use a context that is as long");
        }
        blocks.of_stream(stream)[cells[i]] = read[i];
    }
}

void kvtuner_cache::write_exact(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                                const std::vector<std::pair<uint32_t, uint32_t>> & ranges) {
    if (!cache.exact.is_used()) {
        return;
    }
    copy_exact_rows(const_cast<llama_kv_cache &>(cache));  // those of streams that wait for the next batch
    std::vector<uint32_t> numbers;                         // of the saved cells, which have rows
    std::vector<int32_t> rows;
    uint32_t n = 0;
    for (const auto & [begin, end] : ranges) {
        for (uint32_t i = begin; i < end; ++i, ++n) {
            const int32_t row = cache.exact.row_of({ stream, i });
            if (row >= 0) {
                numbers.push_back(n);
                rows.push_back(row);
            }
        }
    }
    const uint32_t n_rows = (uint32_t)rows.size();
    io.write(&n_rows, sizeof(n_rows));
    io.write(numbers.data(), n_rows * sizeof(uint32_t));
    for (const auto & [il, both] : cache.exact.layers()) {
        for (ggml_tensor * tensor : { both.k, both.v }) {
            for (int32_t row : rows) {
                io.write_tensor(tensor, row * tensor->nb[1], tensor->nb[1]);
            }
        }
    }
}

void kvtuner_cache::read_exact(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                               const std::vector<uint32_t> & cells) {
    if (!cache.exact.is_used()) {
        return;
    }
    copy_exact_rows(cache);
    for (uint32_t cell : cells) {
        cache.exact.forget({ stream, cell });
    }
    uint32_t n_rows;
    io.read(&n_rows, sizeof(n_rows));
    if (n_rows > std::min<size_t>(cells.size(), cache.exact.n_rows())) {
        throw std::runtime_error("the state has " + std::to_string(n_rows) + " exact rows for " +
                                 std::to_string(cells.size()) + " cells: the file is damaged");
    }
    std::vector<uint32_t> numbers(n_rows);
    io.read(numbers.data(), n_rows * sizeof(uint32_t));
    std::vector<kvtuner_exact_rows::cell> of;
    for (uint32_t i = 0; i < n_rows; ++i) {
        if (numbers[i] >= cells.size() || (i > 0 && numbers[i] <= numbers[i - 1])) {
            throw std::runtime_error("the state has an exact row of cell " + std::to_string(numbers[i]) + " of " +
                                     std::to_string(cells.size()) + ": the file is damaged");
        }
        of.push_back({ stream, cells[numbers[i]] });
    }
    cache.exact.place(of, cache.v_cells, next_positions(cache));
    for (const auto & [il, both] : cache.exact.layers()) {
        for (ggml_tensor * tensor : { both.k, both.v }) {
            for (const kvtuner_exact_rows::cell & cell : of) {
                io.read_tensor(tensor, cache.exact.row_of(cell) * tensor->nb[1], tensor->nb[1]);
            }
        }
    }
}
