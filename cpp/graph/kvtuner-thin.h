// Products of quantized weights with some rows, as decoding of many sequences has them.
#pragma once

#include "kvtuner-multiplied.h"

#include <cstdint>

namespace kvtuner {

constexpr int64_t FEWEST_THIN_ROWS = 8, MOST_THIN_ROWS = 64;  // fewer are vectors, more a matrix
constexpr int64_t THIN_VALUES = 256, THIN_ALIGNMENT = 16;     // of rows of weights: multiples of values, and of bytes

inline bool is_thin_type(const ggml_type type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q6_K;
}

// whether the weights are rows of one matrix which nothing writes while graphs run
inline bool are_thin_weights(const ggml_tensor * weights) {
    return is_thin_type(weights->type) && ggml_is_matrix(weights) && ggml_is_contiguous(weights) &&
           is_constant(weights) && weights->ne[0] % THIN_VALUES == 0 && weights->nb[1] % THIN_ALIGNMENT == 0 &&
           (uintptr_t)weights->data % THIN_ALIGNMENT == 0;
}

inline bool is_thin_product(const ggml_tensor * node) {
    if (node->op != GGML_OP_MUL_MAT || !are_thin_weights(node->src[0])) {
        return false;
    }
    const ggml_tensor * rows = node->src[1];
    const int64_t n = ggml_nrows(rows);
    return rows->type == GGML_TYPE_F32 && node->type == GGML_TYPE_F32 && ggml_is_contiguous(rows) &&
           ggml_is_contiguous(node) && (uintptr_t)rows->data % THIN_ALIGNMENT == 0 && n >= FEWEST_THIN_ROWS &&
           n <= MOST_THIN_ROWS;
}

}  // namespace kvtuner
