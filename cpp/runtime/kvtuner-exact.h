// Exact ends: keys and values of some cells as they were before they were quantized, in rows of their own.
//
// A cell belongs to an end where it holds one of the first positions of a sequence, or one of the last that a query
// sees. The cells know sequences and positions; here is only which row a cell has, if any. A cell without one is read
// from the quantized cache, so a row that is taken away costs exactness and nothing else.
#pragma once

#include "kvtuner-plan.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

class llama_kv_cells;

class kvtuner_exact_rows {
public:
    struct layer {
        uint32_t il;
        const ggml_tensor *k, *v;  // of the cache: where the rows are allocated, and under which name
    };

    struct sides {
        ggml_tensor *k, *v;  // [values of a token, rows]
    };

    // what a graph has beside the mask of the cache
    struct inputs {
        ggml_tensor * targets = nullptr;  // I64 [tokens], the row of each
        ggml_tensor * rows = nullptr;     // I32 [slots], negative for none; then blocks: of each slot, of each cell
        ggml_tensor * seen = nullptr;     // F16 [slots, tokens of a stream, 1, streams], as the mask of the cache
        ggml_tensor * whole = nullptr;    // of layers without exact rows: the mask of the cache with all that is seen
    };

    struct cell {
        uint32_t stream, index;

        bool operator==(const cell & other) const {
            return stream == other.stream && index == other.index;
        }
    };

    using cells_vec = std::vector<llama_kv_cells>;

    using buffers = std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>>;

    // n_cells of each of n_stream streams. What is allocated goes to `owner`. no_alloc: tensors without memory, for a
    // measurement of sizes
    void init(const kvtuner_ends & ends, const std::vector<layer> & layers, uint32_t n_stream, uint32_t n_cells,
              uint32_t n_rows, bool no_alloc, buffers & owner);

    bool has(uint32_t il) const {
        return by_layer.count(il) > 0;
    }

    bool is_used() const {
        return !by_layer.empty();
    }

    const sides & of(uint32_t il) const {
        return by_layer.at(il);
    }

    const std::map<uint32_t, sides> & layers() const {
        return by_layer;
    }

    // Gives these cells rows of their own. Others lose theirs where there are too few: those first that are the
    // farthest behind what is read next, which is `next` of each sequence.
    void place(const std::vector<cell> & of, const cells_vec & cells, const std::vector<int32_t> & next);

    // of the graph with this mask
    inputs & inputs_of(const ggml_tensor * mask) {
        return by_mask[mask];
    }

    // these cells hold other tokens now
    void forget(uint32_t stream);
    void forget(cell of);

    // of a cell that is not empty; negative for none
    int32_t row_of(cell of) const {
        return rows[of.stream][of.index];
    }

    uint32_t n_rows() const {
        return (uint32_t)owners.size();
    }

    // The cells of a stream get copies of the rows that the same cells of another one have: what is in them is copied
    // by copy_rows, as upstream's cache copies its own, before the next batch and while no device computes.
    void copy_stream(uint32_t from, uint32_t to, const cells_vec & cells, const std::vector<int32_t> & next);

    void copy_rows();

    // The cell of a row; null where none, or none with a token, has it.
    const cell * owner(uint32_t row, const cells_vec & cells) const;

    // by how many positions each row is to be turned: I32 [rows] of a new graph; null where there is none
    ggml_tensor * build_shift(ggml_context * ctx);
    ggml_tensor * shift_input() const {
        return shift;
    }

    void set_shift(const cells_vec & cells);

    size_t n_bytes() const;
    const kvtuner_ends & ends_of() const {
        return ends;
    }

private:
    kvtuner_ends ends;
    std::map<uint32_t, sides> by_layer;
    std::vector<std::vector<int32_t>> rows;           // [stream][cell]
    std::vector<cell> owners;                         // [row]
    std::vector<std::pair<int32_t, int32_t>> copies;  // of rows, from one to another, in this order
    std::map<const ggml_tensor *, inputs> by_mask;
    ggml_tensor * shift = nullptr;

    int64_t distance(const cell & of, const llama_kv_cells & cells, const std::vector<int32_t> & seqs,
                     const std::vector<int32_t> & next) const;
};
