// Which block of positions the key of each cell, and its exact row, belongs to, where the centers of a plan have a
// span.
//
// A key keeps the block under which it was written, or last turned, whatever becomes of its position: what is taken off
// and what attention adds is then the same.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <map>
#include <vector>

class kvtuner_center_blocks {
public:
    // blocks of what the indices of a write, or the turns of a context shift, stand for
    struct inputs {
        ggml_tensor * before = nullptr;  // I32, as many
        ggml_tensor * after = nullptr;
    };

    // n_block blocks of `span` positions, and cells that are in the first one
    void init(uint32_t span, uint32_t n_block, uint32_t n_stream, uint32_t n_cell);

    bool is_used() const {
        return span > 0;
    }

    uint32_t n_blocks() const {
        return n_block;
    }

    // positions behind the last block belong to it
    int32_t at(int32_t position) const;

    // [cell]
    std::vector<int32_t> & of_stream(uint32_t stream) {
        return of[stream];
    }

    // a new graph has this tensor
    void build(ggml_context * ctx, const ggml_tensor * key);

    const inputs & inputs_of(const ggml_tensor * key) {
        return by_key[key];
    }

private:
    uint32_t span = 0, n_block = 0;
    std::vector<std::vector<int32_t>> of;  // [stream][cell]
    std::map<const ggml_tensor *, inputs> by_key;
};
