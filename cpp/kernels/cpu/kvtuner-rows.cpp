#include "kvtuner-rows.h"

#include "kvtuner-levels.h"
#include "kvtuner-lowbit.h"
#include "kvtuner-lowbit-dot.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml-cpu/simd-mappings.h"

#include <algorithm>
#include <cstring>

namespace kvtuner {

namespace {

// 16 values at a time: a block of 32 holds values j and j + 16 in the two nibbles of byte j
constexpr int HALF = 16;

using codes = uint8_t __attribute__((vector_size(HALF)));

float from_half(ggml_half x) {
    return GGML_CPU_FP16_TO_FP32(x);
}

template <typename T>
T load_as(const void * from) {
    T x;
    memcpy(&x, from, sizeof(x));
    return x;
}

void put_above(float * values, levels x, float d, float m) {
    put(values, x, d);
    add(values, m);
}

levels low_half(const uint8_t * qs) {
    return (levels)(load_as<codes>(qs) & 15);
}

levels high_half(const uint8_t * qs) {
    return (levels)(load_as<codes>(qs) >> 4);
}

// 16 in each byte whose bit of the 16 bits is set
levels fifth_bits(const uint8_t * bits) {
    constexpr uint64_t EVERY_BYTE = 0x0101010101010101;
    const uint64_t spread[2] = { bits[0] * EVERY_BYTE, bits[1] * EVERY_BYTE };
    const codes one_each = { 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128 };
    return (levels)((codes)((load_as<codes>(spread) & one_each) != 0) & 16);
}

void put_values(const block_q8_0 & x, float * values) {
    const float d = from_half(x.d);
    put(values, load_as<levels>(x.qs), d);
    put(values + HALF, load_as<levels>(x.qs + HALF), d);
}

void put_values(const block_q4_0 & x, float * values) {
    const float d = from_half(x.d);
    put(values, low_half(x.qs) - 8, d);
    put(values + HALF, high_half(x.qs) - 8, d);
}

void put_values(const block_q4_1 & x, float * values) {
    const float d = from_half(x.d), m = from_half(x.m);
    put_above(values, low_half(x.qs), d, m);
    put_above(values + HALF, high_half(x.qs), d, m);
}

void put_values(const block_q5_0 & x, float * values) {
    const float d = from_half(x.d);
    put(values, (low_half(x.qs) | fifth_bits(x.qh)) - 16, d);
    put(values + HALF, (high_half(x.qs) | fifth_bits(x.qh + 2)) - 16, d);
}

void put_values(const block_q5_1 & x, float * values) {
    const float d = from_half(x.d), m = from_half(x.m);
    put_above(values, low_half(x.qs) | fifth_bits(x.qh), d, m);
    put_above(values + HALF, high_half(x.qs) | fifth_bits(x.qh + 2), d, m);
}

void put_values(const block_iq4_nl & x, float * values) {
    const float d = from_half(x.d);
    int8_t found[QK4_NL];
    for (int j = 0; j < HALF; ++j) {
        found[j] = kvalues_iq4nl[x.qs[j] & 15];
        found[HALF + j] = kvalues_iq4nl[x.qs[j] >> 4];
    }
    put(values, load_as<levels>(found), d);
    put(values + HALF, load_as<levels>(found + HALF), d);
}

void put_levels(const kvtuner_levels & found, float d, float * values) {
    for (int j = 0; j < QK_NL; j += HALF) {
        put(values + j, load_as<levels>((const char *)&found + j), d);
    }
}

void put_values(const block_q2_nl & x, float * values) {
    put_levels(kvtuner_q2_nl_levels(x.qs), from_half(x.d), values);
}

void put_values(const block_q3_nl & x, float * values) {
    put_levels(kvtuner_q3_nl_levels(x.qs, x.qh), from_half(x.d), values);
}

void read_f32(const void * row, float * values, int64_t n) {
    memcpy(values, row, n * sizeof(float));
}

void read_f16(const void * row, float * values, int64_t n) {
    ggml_cpu_fp16_to_fp32((const ggml_fp16_t *)row, values, n);
}

void read_bf16(const void * row, float * values, int64_t n) {
    ggml_cpu_bf16_to_fp32((const ggml_bf16_t *)row, values, n);
}

template <typename BLOCK, int SIZE>
void read_blocks(const void * row, float * values, int64_t n) {
    const BLOCK * block = (const BLOCK *)row;
    for (; n > 0; n -= SIZE, values += SIZE, ++block) {
        put_values(*block, values);
    }
}

constexpr int64_t AHEAD = 64;       // rows that are asked for before they are read
constexpr int64_t CACHE_LINE = 64;  // bytes

template <void (*READ)(const void *, float *, int64_t)>
void read_all(const row_range & from, float * values, int64_t wide) {
    for (int64_t i = 0; i < from.n; ++i, values += wide) {
        const char * row = from.first + i * from.stride;
        for (int64_t j = 0; j < from.n_bytes + CACHE_LINE - 1; j += CACHE_LINE) {
            __builtin_prefetch(row + AHEAD * from.stride + std::min(j, from.n_bytes - 1));
        }
        READ(row, values, from.n_value);
    }
}

}  // namespace

read_rows row_reader(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return read_all<read_f32>;
        case GGML_TYPE_F16:
            return read_all<read_f16>;
        case GGML_TYPE_BF16:
            return read_all<read_bf16>;
        case GGML_TYPE_Q8_0:
            return read_all<read_blocks<block_q8_0, QK8_0>>;
        case GGML_TYPE_Q5_1:
            return read_all<read_blocks<block_q5_1, QK5_1>>;
        case GGML_TYPE_Q5_0:
            return read_all<read_blocks<block_q5_0, QK5_0>>;
        case GGML_TYPE_Q4_1:
            return read_all<read_blocks<block_q4_1, QK4_1>>;
        case GGML_TYPE_Q4_0:
            return read_all<read_blocks<block_q4_0, QK4_0>>;
        case GGML_TYPE_IQ4_NL:
            return read_all<read_blocks<block_iq4_nl, QK4_NL>>;
        case GGML_TYPE_Q3_NL:
            return read_all<read_blocks<block_q3_nl, QK_NL>>;
        case GGML_TYPE_Q2_NL:
            return read_all<read_blocks<block_q2_nl, QK_NL>>;
        default:
            return nullptr;
    }
}

}  // namespace kvtuner
