// How 32 lanes find a block of q2_nl or q3_nl together: the block of kvtuner-quantize.h, with its order of additions.
// Lane i has the values i and i + 32 of a block.
#pragma once

#include "kvtuner-metal-blocks.h"

// N magnitudes of levels, each with both signs; the next one begins at a step, in units of the scale
template <typename BLOCK>
struct kvtuner_low_bit;

template <>
struct kvtuner_low_bit<block_q2_nl> {
    enum { N = 2 };
    static float step(int i) {
        const float steps[] = { KVTUNER_Q2_NL_STEPS };
        return steps[i];
    }
    static float magnitude(int rank) {
        const float levels[] = { KVTUNER_Q2_NL_LEVELS };
        return levels[N + rank];
    }
    static float start() {
        return KVTUNER_Q2_NL_START;
    }
};

template <>
struct kvtuner_low_bit<block_q3_nl> {
    enum { N = 4 };
    static float step(int i) {
        const float steps[] = { KVTUNER_Q3_NL_STEPS };
        return steps[i];
    }
    static float magnitude(int rank) {
        const float levels[] = { KVTUNER_Q3_NL_LEVELS };
        return levels[N + rank];
    }
    static float start() {
        return KVTUNER_Q3_NL_START;
    }
};

// of a block, in every lane: a + b is b + a, so that all have the bits of the order of additions in sum_of_block
inline float kvtuner_sum_together(float2 x, ushort lane) {
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
    const float2 other = simd_shuffle_xor(x, 16);
    const float2 low = lane < 16 ? x : other;
    const float2 high = lane < 16 ? other : x;
    float sum = ((low[0] + high[0]) + low[1]) + high[1];
    for (ushort n = 8; n > 0; n /= 2) {
        sum = sum + simd_shuffle_xor(sum, n);
    }
    return sum;
}

inline float kvtuner_product_together(float2 x, float2 y, ushort lane) {
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
    return kvtuner_sum_together(x * y, lane);
}

// the steps that a magnitude has reached: the rank of its level
template <typename BLOCK>
int kvtuner_rank(float size, float scale) {
#pragma METAL fp math_mode(safe)
    int rank = 0;
    for (int i = 0; i < kvtuner_low_bit<BLOCK>::N - 1; ++i) {
        rank += size >= kvtuner_low_bit<BLOCK>::step(i) * scale ? 1 : 0;
    }
    return rank;
}

template <typename BLOCK>
float2 kvtuner_magnitudes(float2 size, float scale) {
    return float2(kvtuner_low_bit<BLOCK>::magnitude(kvtuner_rank<BLOCK>(size[0], scale)),
                  kvtuner_low_bit<BLOCK>::magnitude(kvtuner_rank<BLOCK>(size[1], scale)));
}

// as scale_of
inline float kvtuner_scale_together(float squares, float2 size, float2 m, bool is_of_values, ushort lane) {
#pragma METAL fp math_mode(safe)
    const float product = kvtuner_product_together(size, m, lane);
    const float fitted = product / kvtuner_product_together(m, m, lane);
    const float unbiased = squares / product;
    if (!(unbiased <= FLT_MAX)) {
        return fitted;  // zeros alone, or not finite
    }
    return is_of_values ? unbiased : 0.5f * (fitted + unbiased);
}

inline void kvtuner_put_low_bits(int2 codes, ushort lane, device uint8_t * qs) {
    const int bits = (codes[0] & 3) | (codes[1] & 3) << 4;
    const int others = simd_shuffle_xor(bits, 16);
    if (lane < 16) {
        qs[lane] = (uint8_t)(bits | others << 2);
    }
}

inline void kvtuner_put_codes(int2 codes, ushort lane, device block_q2_nl & y) {
    kvtuner_put_low_bits(codes, lane, y.qs);
}

inline void kvtuner_put_codes(int2 codes, ushort lane, device block_q3_nl & y) {
    kvtuner_put_low_bits(codes, lane, y.qs);
    int bits = codes[0] >> 2 << lane / 8 | codes[1] >> 2 << (4 + lane / 8);
    bits |= simd_shuffle_xor(bits, 8);
    bits |= simd_shuffle_xor(bits, 16);
    if (lane < QK_NL / 8) {
        y.qh[lane] = (uint8_t)bits;
    }
}

// the levels next to values x for a scale, then the scale for the levels
template <typename BLOCK>
void kvtuner_quantize_together(float2 x, bool is_of_values, ushort lane, device BLOCK & y) {
#pragma METAL fp math_mode(safe)
    const float2 size = fabs(x);
    const float squares = kvtuner_product_together(x, x, lane);
    float scale = sqrt(squares / QK_NL) * kvtuner_low_bit<BLOCK>::start();
    float2 m = float2(0.0f);
    for (int i = 0; i < KVTUNER_NL_ROUNDS; ++i) {
        m = kvtuner_magnitudes<BLOCK>(size, scale);
        scale = kvtuner_product_together(size, m, lane) / kvtuner_product_together(m, m, lane);
    }
    m = kvtuner_magnitudes<BLOCK>(size, scale);
    const float d = kvtuner_scale_together(squares, size, m, is_of_values, lane);
    int2 codes = int2(0);
    for (int k = 0; k < 2; ++k) {
        const int rank = kvtuner_rank<BLOCK>(size[k], scale);
        codes[k] = x[k] < 0 ? kvtuner_low_bit<BLOCK>::N - 1 - rank : kvtuner_low_bit<BLOCK>::N + rank;
    }
    if (lane == 0) {
        y.d = (half)d;
    }
    kvtuner_put_codes(codes, lane, y);
}
