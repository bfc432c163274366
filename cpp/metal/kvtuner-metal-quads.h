// Four neighbouring values of a row of a cache, of any type that a plan can have.
#pragma once

#include "common.h"
#include "dequantize.h"
#undef QK_NL  // upstream's, of templates that are not used here
#include "kvtuner-blocks.h"
#include "kvtuner-metal-attention.h"

constexpr constant static float kvtuner_q2_nl_levels[] = { KVTUNER_Q2_NL_LEVELS };
constexpr constant static float kvtuner_q3_nl_levels[] = { KVTUNER_Q3_NL_LEVELS };

// quad i of a block of 64
static inline uint kvtuner_two_bits(device const uchar * qs, short i) {
    device const ushort * pairs = (device const ushort *) qs + 2*(i%4);
    return (pairs[0] | (uint) pairs[1] << 16) >> 2*(i/4) & 0x03030303;
}

static inline float4 kvtuner_quad_of(device const block_q2_nl & x, short i) {
    const uint codes = kvtuner_two_bits(x.qs, i);
    float4 levels;
    FOR_UNROLL (short j = 0; j < 4; ++j) {
        levels[j] = kvtuner_q2_nl_levels[codes >> 8*j & 3];
    }
    return levels*(float) x.d;
}

static inline float4 kvtuner_quad_of(device const block_q3_nl & x, short i) {
    device const ushort * high = (device const ushort *) x.qh + 2*(i%2);
    const uint high_bits = (high[0] | (uint) high[1] << 16) >> (i/2) & 0x01010101;
    const uint codes = kvtuner_two_bits(x.qs, i) | high_bits << 2;
    float4 levels;
    FOR_UNROLL (short j = 0; j < 4; ++j) {
        levels[j] = kvtuner_q3_nl_levels[codes >> 8*j & 7];
    }
    return levels*(float) x.d;
}

static inline float4 kvtuner_bf16_quad(device const ushort * x) {
    return float4(as_type<float>((uint) x[0] << 16), as_type<float>((uint) x[1] << 16),
                  as_type<float>((uint) x[2] << 16), as_type<float>((uint) x[3] << 16));
}

// Values 4*i to 4*i + 3 of a row. Which kind is known when the pipeline is made.
static inline float4 kvtuner_quad(const short kind, device const char * row, const short i) {
    float4 x = 0.0f;
    if (kind == KVTUNER_METAL_F32) {
        x = ((device const float4 *) row)[i];
    } else if (kind == KVTUNER_METAL_F16) {
        x = float4(((device const half4 *) row)[i]);
    } else if (kind == KVTUNER_METAL_BF16) {
        x = kvtuner_bf16_quad((device const ushort *) row + 4*i);
    } else if (kind == KVTUNER_METAL_Q8_0) {
        dequantize_q8_0_t4((device const block_q8_0 *) row + i/8, i%8, x);
    } else if (kind == KVTUNER_METAL_Q5_1) {
        dequantize_q5_1_t4((device const block_q5_1 *) row + i/8, i%8, x);
    } else if (kind == KVTUNER_METAL_Q5_0) {
        dequantize_q5_0_t4((device const block_q5_0 *) row + i/8, i%8, x);
    } else if (kind == KVTUNER_METAL_Q4_1) {
        dequantize_q4_1_t4((device const block_q4_1 *) row + i/8, i%8, x);
    } else if (kind == KVTUNER_METAL_Q4_0) {
        dequantize_q4_0_t4((device const block_q4_0 *) row + i/8, i%8, x);
    } else if (kind == KVTUNER_METAL_IQ4_NL) {
        dequantize_iq4_nl_t4((device const block_iq4_nl *) row + i/8, i%8, x);
    } else if (kind == KVTUNER_METAL_Q3_NL) {
        x = kvtuner_quad_of(((device const block_q3_nl *) row)[i/16], i%16);
    } else if (kind == KVTUNER_METAL_Q2_NL) {
        x = kvtuner_quad_of(((device const block_q2_nl *) row)[i/16], i%16);
    }
    return x;
}
