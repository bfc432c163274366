#pragma once

#include "kvtuner-lowbit.h"

typedef struct {
    int8_t at[QK_NL];
} kvtuner_levels;

typedef float kvtuner_dot_sum;

static inline kvtuner_levels kvtuner_q2_nl_levels(const unsigned char * qs) {
    static const int8_t levels[4] = { KVTUNER_Q2_NL_LEVELS };
    kvtuner_levels found;
    for (int j = 0; j < QK_NL; ++j) {
        found.at[j] = levels[qs[j % 16] >> 2 * (j / 16) & 3];
    }
    return found;
}

static inline kvtuner_levels kvtuner_q3_nl_levels(const unsigned char * qs, const unsigned char * qh) {
    static const int8_t levels[8] = { KVTUNER_Q3_NL_LEVELS };
    kvtuner_levels found;
    for (int j = 0; j < QK_NL; ++j) {
        found.at[j] = levels[(qs[j % 16] >> 2 * (j / 16) & 3) | (qh[j % 8] >> j / 8 & 1) << 2];
    }
    return found;
}

static inline kvtuner_dot_sum kvtuner_dot_zero(void) {
    return 0.0f;
}

static inline kvtuner_dot_sum kvtuner_dot_add(kvtuner_dot_sum sum, kvtuner_levels x, const block_q8_0 * y, float d0,
                                              float d1) {
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
