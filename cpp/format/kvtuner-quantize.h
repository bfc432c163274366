// How a block of q2_nl or q3_nl is found, the same to the bit wherever it is compiled: sums run over 16 lanes and then
// pair by pair, nothing is contracted (-ffp-contract=off), division and square root are those of IEEE 754. The mirror
// in Python is kvtuner_gguf/engine/fakequant.py.
#pragma once

#include "kvtuner-blocks.h"

#include <float.h>
#include <math.h>

#include <cassert>
#include <cstdint>

namespace kvtuner {

// what of a cache a block is for
enum class side { K, V };

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

inline float sum_of_products(const float * x, const float * y) {
    float products[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        products[j] = x[j] * y[j];
    }
    return sum_of_block(products);
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

// the magnitudes of the levels next to values of magnitudes x
template <typename BLOCK>
inline void find_magnitudes(const float * x, float scale, float * m) {
    using format = low_bit<BLOCK>;
    const thresholds<BLOCK> limits(scale);
    for (int j = 0; j < QK_NL; ++j) {
        float found = format::LEVELS[format::N];
        for (int i = 0; i < limits.N; ++i) {
            found += x[j] >= limits.at[i] ? format::LEVELS[format::N + 1 + i] - format::LEVELS[format::N + i] : 0;
        }
        m[j] = found;
    }
}

// The scale to store for values whose magnitudes x became levels of magnitudes m; `squares` is the sum of x squared.
// That of least squares makes values smaller, by their mean squared error, which adds up over many of them. The
// unbiased one leaves <x, d m> = <x, x>: V has it, and K the mean of both.
template <side SIDE>
inline float scale_of(float squares, const float * x, const float * m) {
    const float product = sum_of_products(x, m);
    const float fitted = product / sum_of_products(m, m);
    const float unbiased = squares / product;
    if (!(unbiased <= FLT_MAX)) {
        return fitted;  // zeros alone, or not finite
    }
    return SIDE == side::V ? unbiased : 0.5f * (fitted + unbiased);
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

// the levels next to values x for a scale, then the scale for the levels
template <side SIDE, typename HALVES, typename BLOCK>
inline void quantize_block(const float * x, BLOCK & y) {
    constexpr int N = low_bit<BLOCK>::N;
    float size[QK_NL];
    float m[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        size[j] = fabsf(x[j]);
    }
    const float squares = sum_of_products(x, x);
    float scale = sqrtf(squares / QK_NL) * low_bit<BLOCK>::START;
    for (int i = 0; i < KVTUNER_NL_ROUNDS; ++i) {
        find_magnitudes<BLOCK>(size, scale, m);
        scale = sum_of_products(size, m) / sum_of_products(m, m);
    }
    find_magnitudes<BLOCK>(size, scale, m);
    unsigned char codes[QK_NL];
    for (int j = 0; j < QK_NL; ++j) {
        unsigned char rank = 0;
        for (int i = 0; i < N - 1; ++i) {
            rank += m[j] > low_bit<BLOCK>::LEVELS[N + i];
        }
        codes[j] = x[j] < 0 ? N - 1 - rank : N + rank;
    }
    y.d = HALVES::of(scale_of<SIDE>(squares, size, m));
    put_codes(codes, y);
}

// k values, whole blocks; HALVES converts a float to half precision
template <side SIDE, typename HALVES, typename BLOCK>
inline void quantize_row(const float * x, BLOCK * y, int64_t k) {
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        quantize_block<SIDE, HALVES>(x + b * QK_NL, y[b]);
    }
}

}  // namespace kvtuner
