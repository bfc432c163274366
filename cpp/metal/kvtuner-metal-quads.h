// Four neighbouring values of a row of a cache, of any type that a plan can have: the values of kvtuner-decode.h, found
// together.
#pragma once

#include "kvtuner-metal-attention-args.h"
#include "kvtuner-metal-blocks.h"

constexpr constant static float kvtuner_q2_nl_levels[] = { KVTUNER_Q2_NL_LEVELS };
constexpr constant static float kvtuner_q3_nl_levels[] = { KVTUNER_Q3_NL_LEVELS };

// four bytes, aligned to two
static inline uint kvtuner_bytes(device const uchar * from) {
    device const ushort * pairs = (device const ushort *)from;
    return pairs[0] | (uint)pairs[1] << 16;
}

// Codes of quad i of a block, one in each byte.

static inline uint kvtuner_codes_of_4_bits(device const uchar * qs, int i) {
    return kvtuner_bytes(qs + 4 * (i % 4)) >> 4 * (i / 4) & 0x0f0f0f0f;
}

static inline uint kvtuner_codes_of_5_bits(device const uchar * qs, device const uchar * qh, int i) {
    const uint high = kvtuner_bytes(qh) >> 4 * i & 15;
    return kvtuner_codes_of_4_bits(qs, i) | (high * 0x00204081 & 0x01010101) << 4;
}

static inline uint kvtuner_codes_of_2_bits(device const uchar * qs, int i) {
    return kvtuner_bytes(qs + 4 * (i % 4)) >> 2 * (i / 4) & 0x03030303;
}

static inline uint kvtuner_codes_of_3_bits(device const uchar * qs, device const uchar * qh, int i) {
    const uint high = kvtuner_bytes(qh + 4 * (i % 2)) >> i / 2 & 0x01010101;
    return kvtuner_codes_of_2_bits(qs, i) | high << 2;
}

static inline float4 kvtuner_numbers(uint codes) {
    return float4(as_type<uchar4>(codes));
}

static inline float4 kvtuner_levels(uint codes, constant const float * levels) {
    const uchar4 code = as_type<uchar4>(codes);
    return float4(levels[code[0]], levels[code[1]], levels[code[2]], levels[code[3]]);
}

static inline float4 kvtuner_quad_of(device const block_q8_0 & x, int i) {
    return float4(as_type<char4>(kvtuner_bytes((device const uchar *)x.qs + 4 * i))) * (float)x.d;
}

static inline float4 kvtuner_quad_of(device const block_q5_1 & x, int i) {
    return kvtuner_numbers(kvtuner_codes_of_5_bits(x.qs, x.qh, i)) * (float)x.d + (float)x.m;
}

static inline float4 kvtuner_quad_of(device const block_q5_0 & x, int i) {
    return (kvtuner_numbers(kvtuner_codes_of_5_bits(x.qs, x.qh, i)) - 16.0f) * (float)x.d;
}

static inline float4 kvtuner_quad_of(device const block_q4_1 & x, int i) {
    return kvtuner_numbers(kvtuner_codes_of_4_bits(x.qs, i)) * (float)x.d + (float)x.m;
}

static inline float4 kvtuner_quad_of(device const block_q4_0 & x, int i) {
    return (kvtuner_numbers(kvtuner_codes_of_4_bits(x.qs, i)) - 8.0f) * (float)x.d;
}

static inline float4 kvtuner_quad_of(device const block_iq4_nl & x, int i) {
    return kvtuner_levels(kvtuner_codes_of_4_bits(x.qs, i), kvalues_iq4nl_f) * (float)x.d;
}

static inline float4 kvtuner_quad_of(device const block_q3_nl & x, int i) {
    return kvtuner_levels(kvtuner_codes_of_3_bits(x.qs, x.qh, i), kvtuner_q3_nl_levels) * (float)x.d;
}

static inline float4 kvtuner_quad_of(device const block_q2_nl & x, int i) {
    return kvtuner_levels(kvtuner_codes_of_2_bits(x.qs, i), kvtuner_q2_nl_levels) * (float)x.d;
}

// Values 4 i to 4 i + 3 of a row. Its kind is known when the pipeline is made.
static inline float4 kvtuner_quad(short kind, device const char * row, int i) {
    switch (kind) {
        case KVTUNER_METAL_F32:
            return ((device const float4 *)row)[i];
        case KVTUNER_METAL_F16:
            return float4(((device const half4 *)row)[i]);
        case KVTUNER_METAL_BF16: {
            const ushort4 x = ((device const ushort4 *)row)[i];
            return float4(as_type<float>((uint)x[0] << 16), as_type<float>((uint)x[1] << 16),
                          as_type<float>((uint)x[2] << 16), as_type<float>((uint)x[3] << 16));
        }
        case KVTUNER_METAL_Q8_0:
            return kvtuner_quad_of(((device const block_q8_0 *)row)[i / 8], i % 8);
        case KVTUNER_METAL_Q5_1:
            return kvtuner_quad_of(((device const block_q5_1 *)row)[i / 8], i % 8);
        case KVTUNER_METAL_Q5_0:
            return kvtuner_quad_of(((device const block_q5_0 *)row)[i / 8], i % 8);
        case KVTUNER_METAL_Q4_1:
            return kvtuner_quad_of(((device const block_q4_1 *)row)[i / 8], i % 8);
        case KVTUNER_METAL_Q4_0:
            return kvtuner_quad_of(((device const block_q4_0 *)row)[i / 8], i % 8);
        case KVTUNER_METAL_IQ4_NL:
            return kvtuner_quad_of(((device const block_iq4_nl *)row)[i / 8], i % 8);
        case KVTUNER_METAL_Q3_NL:
            return kvtuner_quad_of(((device const block_q3_nl *)row)[i / 16], i % 16);
        case KVTUNER_METAL_Q2_NL:
            return kvtuner_quad_of(((device const block_q2_nl *)row)[i / 16], i % 16);
        default:
            return float4(0.0f);
    }
}
