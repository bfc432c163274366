// Blocks of the cache types in Metal, and their values.
#pragma once

#include "common.h"

#define GGML_COMMON_DECL_METAL
#define GGML_COMMON_IMPL_METAL
#include "ggml-common.h"

#define KVTUNER_IN device
#include "kvtuner-decode.h"

// value j of a block
template <typename BLOCK>
float kvtuner_value(device const BLOCK & x, int j) {
    return (float)x.d * (float)kvtuner_level(x, j);
}

inline float kvtuner_value(device const block_q4_1 & x, int j) {
    return (float)x.d * (float)kvtuner_level(x, j) + (float)x.m;
}

inline float kvtuner_value(device const block_q5_1 & x, int j) {
    return (float)x.d * (float)kvtuner_level(x, j) + (float)x.m;
}
