#pragma once

#include "kvtuner-lowbit.h"

#include <arm_neon.h>

typedef int8x16x4_t kvtuner_block_levels;
typedef float32x4_t kvtuner_dot_sum;

// the two low bits of the 64 codes
static inline uint8x16x4_t kvtuner_low_bits(const unsigned char * qs) {
    const uint8x16_t bytes = vld1q_u8(qs);
    const uint8x16_t mask = vdupq_n_u8(3);
    const uint8x16x4_t codes = { {
            vandq_u8(bytes, mask),
            vandq_u8(vshrq_n_u8(bytes, 2), mask),
            vandq_u8(vshrq_n_u8(bytes, 4), mask),
            vshrq_n_u8(bytes, 6),
    } };
    return codes;
}

static inline kvtuner_block_levels kvtuner_levels_of(const block_q2_nl & x) {
    static const int8_t levels[16] = { KVTUNER_Q2_NL_LEVELS };
    const int8x16_t table = vld1q_s8(levels);
    const uint8x16x4_t codes = kvtuner_low_bits(x.qs);
    kvtuner_block_levels found;
    for (int g = 0; g < 4; ++g) {
        found.val[g] = vqtbl1q_s8(table, codes.val[g]);
    }
    return found;
}

static inline kvtuner_block_levels kvtuner_levels_of(const block_q3_nl & x) {
    static const int8_t levels[16] = { KVTUNER_Q3_NL_LEVELS };
    static const uint8_t first_bits[16] = { 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2 };
    const int8x16_t table = vld1q_s8(levels);
    const uint8x16x4_t low = kvtuner_low_bits(x.qs);
    const uint8x16_t high = vcombine_u8(vld1_u8(x.qh), vld1_u8(x.qh));
    uint8x16_t bits = vld1q_u8(first_bits);
    kvtuner_block_levels found;
    for (int g = 0; g < 4; ++g) {
        const uint8x16_t four = vandq_u8(vtstq_u8(high, bits), vdupq_n_u8(4));
        found.val[g] = vqtbl1q_s8(table, vorrq_u8(low.val[g], four));
        bits = vshlq_n_u8(bits, 2);
    }
    return found;
}

static inline kvtuner_dot_sum kvtuner_dot_zero(void) {
    return vdupq_n_f32(0);
}

static inline int32x4_t kvtuner_dot_16(int32x4_t sum, int8x16_t x, int8x16_t y) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, x, y);
#else
    sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    return vpadalq_s16(sum, vmull_s8(vget_high_s8(x), vget_high_s8(y)));
#endif
}

static inline float32x4_t kvtuner_dot_half(float32x4_t sum, int8x16_t x0, int8x16_t x1, const block_q8_0 * y, float d) {
    int32x4_t dots = kvtuner_dot_16(vdupq_n_s32(0), x0, vld1q_s8(y->qs));
    dots = kvtuner_dot_16(dots, x1, vld1q_s8(y->qs + 16));
    return vmlaq_n_f32(sum, vcvtq_f32_s32(dots), d);
}

static inline kvtuner_dot_sum kvtuner_dot_add(kvtuner_dot_sum sum, kvtuner_block_levels x, const block_q8_0 * y,
                                              float d0, float d1) {
    sum = kvtuner_dot_half(sum, x.val[0], x.val[1], y, d0);
    return kvtuner_dot_half(sum, x.val[2], x.val[3], y + 1, d1);
}

static inline float kvtuner_dot_total(kvtuner_dot_sum sum) {
    return vaddvq_f32(sum);
}
