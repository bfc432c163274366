#include "kvtuner-exact.h"

#include "ggml-alloc.h"
#include "llama-cparams.h"
#include "llama-kv-cells.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

static constexpr uint32_t NOBODY = UINT32_MAX;
static constexpr int64_t FREE = std::numeric_limits<int64_t>::max();

namespace {

ggml_tensor * make_rows(ggml_context * ctx, const ggml_tensor * like, ggml_type type, uint32_t n_rows) {
    ggml_tensor * rows = ggml_new_tensor_2d(ctx, type, like->ne[0], n_rows);
    ggml_format_name(rows, "%s_exact", like->name);
    return rows;
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t buft, ggml_context * ctx, bool no_alloc) {
    if (no_alloc) {
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buft, 0);
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            t->buffer = buffer;
        }
        return buffer;
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
    if (!buffer) {
        throw std::runtime_error("failed to allocate the exact ends of the KV cache");
    }
    ggml_backend_buffer_clear(buffer, 0);
    return buffer;
}

}  // namespace

void kvtuner_exact_rows::init(const kvtuner_ends & of, const std::vector<layer> & layers, uint32_t n_stream,
                              uint32_t n_cells, uint32_t n_rows, bool no_alloc, buffers & owner) {
    ends = of;
    rows.assign(n_stream, std::vector<int32_t>(n_cells, -1));
    owners.assign(n_rows, { NOBODY, 0 });
    std::map<ggml_backend_buffer_type_t, std::vector<layer>> by_buft;
    for (const layer & l : layers) {
        by_buft[ggml_backend_buffer_get_type(l.k->buffer)].push_back(l);
    }
    for (const auto & [buft, group] : by_buft) {
        ggml_context_ptr ctx(ggml_init({ 2 * group.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        for (const layer & l : group) {
            by_layer[l.il] = { make_rows(ctx.get(), l.k, ends.type, n_rows),
                               make_rows(ctx.get(), l.v, ends.type, n_rows) };
        }
        ggml_backend_buffer_ptr buffer(allocate(buft, ctx.get(), no_alloc));
        owner.emplace_back(std::move(ctx), std::move(buffer));
    }
}

void kvtuner_exact_rows::forget(cell of) {
    int32_t & row = rows[of.stream][of.index];
    if (row >= 0) {
        owners[row].stream = NOBODY;
        row = -1;
    }
}

void kvtuner_exact_rows::forget(uint32_t stream) {
    for (uint32_t i = 0; i < rows[stream].size(); ++i) {
        forget(cell{ stream, i });
    }
}

const kvtuner_exact_rows::cell * kvtuner_exact_rows::owner(uint32_t row, const cells_vec & cells) const {
    const cell & of = owners[row];
    return of.stream == NOBODY || cells[of.stream].is_empty(of.index) ? nullptr : &of;
}

// of each stream, the sequences that have cells there, of those that have a next position
static std::vector<std::vector<int32_t>> sequences_of(const kvtuner_exact_rows::cells_vec & cells, size_t n_seq) {
    std::vector<std::vector<int32_t>> found(cells.size());
    for (size_t stream = 0; stream < cells.size(); ++stream) {
        for (int32_t seq = 0; seq < (int32_t)n_seq; ++seq) {
            if (!cells[stream].seq_pos_get(seq).empty()) {
                found[stream].push_back(seq);
            }
        }
    }
    return found;
}

// How far behind what is read next the token of a row lies; in a sequence's first positions it does not. `seqs`: of the
// row's stream
int64_t kvtuner_exact_rows::distance(const cell & of, const llama_kv_cells & cells, const std::vector<int32_t> & seqs,
                                     const std::vector<int32_t> & next) const {
    const int64_t position = cells.pos_get(of.index);
    int64_t nearest = FREE - 1;
    for (const int32_t seq : seqs) {
        if (cells.seq_has(of.index, seq)) {
            nearest = std::min(nearest, position < (int64_t)ends.first ? -1 : next[seq] - position);
        }
    }
    return nearest;
}

void kvtuner_exact_rows::place(const std::vector<cell> & of, const cells_vec & cells,
                               const std::vector<int32_t> & next) {
    for (const cell & c : of) {
        forget(c);
    }
    const std::vector<std::vector<int32_t>> seqs = sequences_of(cells, next.size());
    std::vector<std::pair<int64_t, uint32_t>> far(owners.size());
    for (uint32_t row = 0; row < owners.size(); ++row) {
        const cell * mine = owner(row, cells);
        far[row] = { mine ? distance(*mine, cells[mine->stream], seqs[mine->stream], next) : FREE, row };
    }
    const size_t n = std::min(of.size(), far.size());
    std::partial_sort(far.begin(), far.begin() + n, far.end(), [](const auto & a, const auto & b) { return a > b; });
    for (size_t i = 0; i < n; ++i) {
        const uint32_t row = far[i].second;
        if (owners[row].stream != NOBODY) {
            forget(owners[row]);
        }
        owners[row] = of[i];
        rows[of[i].stream][of[i].index] = (int32_t)row;
    }
}

void kvtuner_exact_rows::copy_stream(uint32_t from, uint32_t to, const cells_vec & cells,
                                     const std::vector<int32_t> & next) {
    forget(to);
    std::vector<cell> of;
    for (uint32_t i = 0; i < rows[from].size(); ++i) {
        if (rows[from][i] >= 0 && !cells[to].is_empty(i)) {
            of.push_back({ to, i });
        }
    }
    place(of, cells, next);
    for (const cell & c : of) {
        const int32_t source = rows[from][c.index], target = row_of(c);
        if (source >= 0 && target >= 0) {
            copies.push_back({ source, target });
        }
    }
}

void kvtuner_exact_rows::copy_rows() {
    std::vector<uint8_t> row;
    for (const auto & [il, both] : by_layer) {
        for (ggml_tensor * tensor : { both.k, both.v }) {
            row.resize(tensor->nb[1]);
            for (const auto & [source, target] : copies) {
                ggml_backend_tensor_get(tensor, row.data(), source * row.size(), row.size());
                ggml_backend_tensor_set(tensor, row.data(), target * row.size(), row.size());
            }
        }
    }
    copies.clear();
}

ggml_tensor * kvtuner_exact_rows::build_shift(ggml_context * ctx) {
    shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_rows());
    ggml_set_input(shift);
    return shift;
}

void kvtuner_exact_rows::set_shift(const cells_vec & cells) {
    if (!shift || !shift->buffer) {
        return;
    }
    int32_t * by = (int32_t *)shift->data;
    for (uint32_t row = 0; row < n_rows(); ++row) {
        const cell * of = owner(row, cells);
        by[row] = of ? cells[of->stream].get_shift(of->index) : 0;
    }
    shift = nullptr;
}

size_t kvtuner_exact_rows::n_bytes() const {
    size_t n = 0;
    for (const auto & [il, both] : by_layer) {
        n += ggml_nbytes(both.k) + ggml_nbytes(both.v);
    }
    return n;
}
