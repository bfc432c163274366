// How a block of q2_nl or q3_nl is found, the same to the bit wherever it is compiled: sums run over 16 lanes and then
// pair by pair, nothing is contracted (-ffp-contract=off), division and square root are those of IEEE 754. The mirror
// in Python is kvtuner_gguf/engine/fakequant.py.
#pragma once

#include "kvtuner-lowbit.h"

#include <math.h>

#define KVTUNER_LANES 16

static inline float kvtuner_sum(const float * x) {
    float lane[KVTUNER_LANES];
    for (int i = 0; i < KVTUNER_LANES; ++i) {
        lane[i] = ((x[i] + x[i + 16]) + x[i + 32]) + x[i + 48];
    }
    for (int n = KVTUNER_LANES / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) {
            lane[i] = lane[i] + lane[i + n];
        }
    }
    return lane[0];
}

static inline float kvtuner_start(const float * x, float start) {
    float squares[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        squares[j] = x[j] * x[j];
    }
    return sqrtf(kvtuner_sum(squares) / QK_NL) * start;
}

// the scale of least squares for values x with levels of magnitude m
static inline float kvtuner_fit(const float * x, const float * m) {
    float products[QK_NL];
    float squares[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        products[j] = fabsf(x[j]) * m[j];
        squares[j] = m[j] * m[j];
    }
    return kvtuner_sum(products) / kvtuner_sum(squares);
}

static inline void kvtuner_q2_nl_magnitudes(const float * x, float scale, float * m) {
    const float step = KVTUNER_Q2_NL_STEPS * scale;
    for (int j = 0; j < QK_NL; ++j) {
        m[j] = fabsf(x[j]) >= step ? 10.0f : 3.0f;
    }
}

static inline void kvtuner_q3_nl_magnitudes(const float * x, float scale, float * m) {
    static const float steps[3] = { KVTUNER_Q3_NL_STEPS };
    const float first = steps[0] * scale;
    const float second = steps[1] * scale;
    const float third = steps[2] * scale;
    for (int j = 0; j < QK_NL; ++j) {
        const float size = fabsf(x[j]);
        m[j] = size >= second ? (size >= third ? 26.0f : 16.0f) : (size >= first ? 9.0f : 3.0f);
    }
}

typedef void (*kvtuner_magnitudes)(const float * x, float scale, float * m);

static inline float kvtuner_scale(const float * x, float start, kvtuner_magnitudes magnitudes) {
    float m[QK_NL];
    float scale = kvtuner_start(x, start);
    for (int i = 0; i < KVTUNER_NL_ROUNDS; ++i) {
        magnitudes(x, scale, m);
        scale = kvtuner_fit(x, m);
    }
    return scale;
}

static inline float kvtuner_q2_nl_scale(const float * x) {
    return kvtuner_scale(x, KVTUNER_Q2_NL_START, kvtuner_q2_nl_magnitudes);
}

static inline float kvtuner_q3_nl_scale(const float * x) {
    return kvtuner_scale(x, KVTUNER_Q3_NL_START, kvtuner_q3_nl_magnitudes);
}

// d as it is stored, stored_d what that is as a float
static inline void kvtuner_q2_nl_block(const float * x, ggml_half d, float stored_d, block_q2_nl * y) {
    unsigned char codes[QK_NL];
    const float step = KVTUNER_Q2_NL_STEPS * stored_d;
    for (int j = 0; j < QK_NL; ++j) {
        const unsigned char size = fabsf(x[j]) >= step;
        codes[j] = x[j] < 0 ? 1 - size : 2 + size;
    }
    y->d = d;
    for (int i = 0; i < QK_NL / 4; ++i) {
        y->qs[i] = codes[i] | codes[i + 16] << 2 | codes[i + 32] << 4 | codes[i + 48] << 6;
    }
}

static inline void kvtuner_q3_nl_block(const float * x, ggml_half d, float stored_d, block_q3_nl * y) {
    static const float steps[3] = { KVTUNER_Q3_NL_STEPS };
    unsigned char codes[QK_NL];
    unsigned char high[QK_NL];
    const float first = steps[0] * stored_d;
    const float second = steps[1] * stored_d;
    const float third = steps[2] * stored_d;
    for (int j = 0; j < QK_NL; ++j) {
        const float size = fabsf(x[j]);
        const unsigned char rank = (size >= first) + (size >= second) + (size >= third);
        const unsigned char code = x[j] < 0 ? 3 - rank : 4 + rank;
        codes[j] = code & 3;
        high[j] = code >> 2;
    }
    y->d = d;
    for (int i = 0; i < QK_NL / 4; ++i) {
        y->qs[i] = codes[i] | codes[i + 16] << 2 | codes[i + 32] << 4 | codes[i + 48] << 6;
    }
    for (int i = 0; i < QK_NL / 8; ++i) {
        unsigned char bits = 0;
        for (int g = 0; g < 8; ++g) {
            bits |= high[8 * g + i] << g;
        }
        y->qh[i] = bits;
    }
}
