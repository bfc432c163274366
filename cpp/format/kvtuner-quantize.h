// How a block of q2_nl or q3_nl is found, the same to the bit wherever it is compiled: sums run over 16 lanes and then
// pair by pair, nothing is contracted (-ffp-contract=off), division and square root are those of IEEE 754. The mirror
// in Python is kvtuner_gguf/engine/fakequant.py.
#pragma once

#include "kvtuner-blocks.h"

#include <math.h>

#include <cassert>
#include <cstdint>

namespace kvtuner {

// N magnitudes of levels, each with both signs; the next one begins at a step, in units of the scale
template <typename BLOCK>
struct low_bit;

template <>
struct low_bit<block_q2_nl> {
    static constexpr int N = 2;
    static constexpr float LEVELS[2 * N] = { KVTUNER_Q2_NL_LEVELS };
    static constexpr float STEPS[N - 1] = { KVTUNER_Q2_NL_STEPS };
    static constexpr float START = KVTUNER_Q2_NL_START;
};

template <>
struct low_bit<block_q3_nl> {
    static constexpr int N = 4;
    static constexpr float LEVELS[2 * N] = { KVTUNER_Q3_NL_LEVELS };
    static constexpr float STEPS[N - 1] = { KVTUNER_Q3_NL_STEPS };
    static constexpr float START = KVTUNER_Q3_NL_START;
};

inline float sum_of_block(const float * x) {
    constexpr int N = 16;
    float lane[N];
    for (int i = 0; i < N; ++i) {
        lane[i] = ((x[i] + x[i + 16]) + x[i + 32]) + x[i + 48];
    }
    for (int n = N / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) {
            lane[i] = lane[i] + lane[i + n];
        }
    }
    return lane[0];
}

// the root mean square
inline float size_of_block(const float * x) {
    float squares[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        squares[j] = x[j] * x[j];
    }
    return sqrtf(sum_of_block(squares) / QK_NL);
}

// the scale of least squares for values x with levels of magnitude m
inline float fit_scale(const float * x, const float * m) {
    float products[QK_NL];
    float squares[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        products[j] = fabsf(x[j]) * m[j];
        squares[j] = m[j] * m[j];
    }
    return sum_of_block(products) / sum_of_block(squares);
}

template <typename BLOCK>
struct thresholds {
    static constexpr int N = low_bit<BLOCK>::N - 1;
    float at[N];

    explicit thresholds(float scale) {
        for (int i = 0; i < N; ++i) {
            at[i] = low_bit<BLOCK>::STEPS[i] * scale;
        }
    }
};

// the magnitudes of the levels next to values x
template <typename BLOCK>
inline void find_magnitudes(const float * x, float scale, float * m) {
    using format = low_bit<BLOCK>;
    const thresholds<BLOCK> limits(scale);
    for (int j = 0; j < QK_NL; ++j) {
        const float size = fabsf(x[j]);
        float found = format::LEVELS[format::N];
        for (int i = 0; i < limits.N; ++i) {
            found = size >= limits.at[i] ? format::LEVELS[format::N + 1 + i] : found;
        }
        m[j] = found;
    }
}

// the scale of a block, before it is rounded to half precision
template <typename BLOCK>
inline float find_scale(const float * x) {
    float m[QK_NL];
    float scale = size_of_block(x) * low_bit<BLOCK>::START;
    for (int i = 0; i < KVTUNER_NL_ROUNDS; ++i) {
        find_magnitudes<BLOCK>(x, scale, m);
        scale = fit_scale(x, m);
    }
    return scale;
}

inline void put_low_bits(const unsigned char * codes, unsigned char * qs) {
    for (int i = 0; i < QK_NL / 4; ++i) {
        qs[i] = (codes[i] & 3) | (codes[i + 16] & 3) << 2 | (codes[i + 32] & 3) << 4 | (codes[i + 48] & 3) << 6;
    }
}

inline void put_codes(const unsigned char * codes, block_q2_nl & y) {
    put_low_bits(codes, y.qs);
}

inline void put_codes(const unsigned char * codes, block_q3_nl & y) {
    put_low_bits(codes, y.qs);
    for (int i = 0; i < QK_NL / 8; ++i) {
        unsigned char bits = 0;
        for (int g = 0; g < 8; ++g) {
            bits |= (codes[8 * g + i] >> 2) << g;
        }
        y.qh[i] = bits;
    }
}

// d as it is stored, stored_d what that is as a float
template <typename BLOCK>
inline void fill_block(const float * x, ggml_half d, float stored_d, BLOCK & y) {
    constexpr int N = low_bit<BLOCK>::N;
    const thresholds<BLOCK> limits(stored_d);
    unsigned char codes[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        const float size = fabsf(x[j]);
        unsigned char rank = 0;
        for (int i = 0; i < limits.N; ++i) {
            rank += size >= limits.at[i];
        }
        codes[j] = x[j] < 0 ? N - 1 - rank : N + rank;
    }
    y.d = d;
    put_codes(codes, y);
}

// k values, whole blocks; HALVES converts floats to halves and back
template <typename HALVES, typename BLOCK>
inline void quantize_row(const float * x, BLOCK * y, int64_t k) {
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const ggml_half d = HALVES::of(find_scale<BLOCK>(x + b * QK_NL));
        fill_block(x + b * QK_NL, d, HALVES::to_float(d), y[b]);
    }
}

}  // namespace kvtuner
