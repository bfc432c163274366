#pragma once

#include "kvtuner-lowbit.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"
#include "kvtuner-decode.h"

typedef struct {
    int8_t at[QK_NL];
} kvtuner_block_levels;

typedef float kvtuner_dot_sum;

template <typename BLOCK>
inline kvtuner_block_levels kvtuner_levels_of(const BLOCK & x) {
    kvtuner_block_levels found;
    for (int j = 0; j < QK_NL; ++j) {
        found.at[j] = (int8_t)kvtuner_level(x, j);
    }
    return found;
}

static inline kvtuner_dot_sum kvtuner_dot_zero(void) {
    return 0.0f;
}

static inline kvtuner_dot_sum kvtuner_dot_add(kvtuner_dot_sum sum, kvtuner_block_levels x, const block_q8_0 * y,
                                              float d0, float d1) {
    int first = 0;
    int second = 0;
    for (int j = 0; j < QK8_0; ++j) {
        first += x.at[j] * y[0].qs[j];
        second += x.at[j + QK8_0] * y[1].qs[j];
    }
    return sum + d0 * (float)first + d1 * (float)second;
}

static inline float kvtuner_dot_total(kvtuner_dot_sum sum) {
    return sum;
}
