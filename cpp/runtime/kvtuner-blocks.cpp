#include "kvtuner-blocks.h"

#include <algorithm>

// numbers of a cache line, with which what lies behind these inputs is to begin
static constexpr int64_t LINE = 16;

void kvtuner_center_blocks::init(uint32_t n_position, uint32_t n, uint32_t n_stream, uint32_t n_cell) {
    span = n_position;
    n_block = n;
    of.assign(n_stream, std::vector<int32_t>(n_cell, 0));
}

int32_t kvtuner_center_blocks::at(int32_t position) const {
    return std::min(position / (int32_t)span, (int32_t)n_block - 1);
}

void kvtuner_center_blocks::build(ggml_context * ctx, const ggml_tensor * key) {
    inputs & made = by_key[key];
    for (ggml_tensor ** tensor : { &made.before, &made.after }) {
        ggml_tensor * whole = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, GGML_PAD(key->ne[0], LINE));
        ggml_set_input(whole);
        *tensor = ggml_view_1d(ctx, whole, key->ne[0], 0);
    }
}
