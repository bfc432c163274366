// How a simdgroup converts and stores values of a row that its lanes hold, value 32 i + lane in x[i]. Blocks of 32 are
// found as upstream's quantize.h finds them.
#pragma once

#include "kvtuner-metal-lowbit.h"

// the value of largest magnitude, the first of them; 0 where all are
inline float kvtuner_largest(float x, ushort lane) {
    const float size = simd_max(fabs(x));
    const uint first = simd_min(fabs(x) == size ? (uint)lane : 31u);
    const float found = simd_shuffle(x, (ushort)first);
    return size > 0.0f ? found : 0.0f;
}

// the first half of the values in the low bits
inline void kvtuner_put_four_bits(uint code, ushort lane, device uint8_t * qs) {
    const uint other = simd_shuffle_xor(code, 16);
    if (lane < 16) {
        qs[lane] = (uint8_t)((code & 15) | (other & 15) << 4);
    }
}

inline void kvtuner_put_fifth_bits(uint code, ushort lane, device uint8_t * qh) {
    const uint bits = simd_sum((code >> 4 & 1) << lane);
    if (lane < 4) {
        qh[lane] = (uint8_t)(bits >> 8 * lane);
    }
}

inline void kvtuner_put(float x, ushort lane, device block_q8_0 & y) {
#pragma METAL fp math_mode(safe)
    const float d = simd_max(fabs(x)) / ((1 << 7) - 1);
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = (half)d;
    }
    y.qs[lane] = (int8_t)round(x * id);
}

inline void kvtuner_put(float x, ushort lane, device block_q4_0 & y) {
#pragma METAL fp math_mode(safe)
    const float d = kvtuner_largest(x, lane) / -8;
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = (half)d;
    }
    kvtuner_put_four_bits((uint)min(15, (int)(x * id + 8.5f)), lane, y.qs);
}

inline void kvtuner_put(float x, ushort lane, device block_q4_1 & y) {
#pragma METAL fp math_mode(safe)
    const float least = simd_min(x);
    const float d = (simd_max(x) - least) / ((1 << 4) - 1);
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = (half)d;
        y.m = (half)least;
    }
    kvtuner_put_four_bits((uint)min(15, (int)((x - least) * id + 0.5f)), lane, y.qs);
}

inline void kvtuner_put(float x, ushort lane, device block_q5_0 & y) {
#pragma METAL fp math_mode(safe)
    const float d = kvtuner_largest(x, lane) / -16;
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = (half)d;
    }
    const uint code = (uint)min(31, (int)(x * id + 16.5f));
    kvtuner_put_four_bits(code, lane, y.qs);
    kvtuner_put_fifth_bits(code, lane, y.qh);
}

inline void kvtuner_put(float x, ushort lane, device block_q5_1 & y) {
#pragma METAL fp math_mode(safe)
    const float least = simd_min(x);
    const float d = (simd_max(x) - least) / 31;
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = (half)d;
        y.m = (half)least;
    }
    const uint code = (uint)((x - least) * id + 0.5f);
    kvtuner_put_four_bits(code, lane, y.qs);
    kvtuner_put_fifth_bits(code, lane, y.qh);
}

// in the order of upstream's loop over both halves of a block
inline float kvtuner_sum_of_halves(float x) {
    const float pair = x + simd_shuffle_xor(x, 16);
    float sum = 0.0f;
    for (ushort j = 0; j < 16; ++j) {
        sum += simd_shuffle(pair, j);
    }
    return sum;
}

inline void kvtuner_put(float x, ushort lane, device block_iq4_nl & y) {
#pragma METAL fp math_mode(safe)
    const float d = kvtuner_largest(x, lane) / kvalues_iq4nl_f[0];
    const float id = d ? 1.0f / d : 0.0f;
    const uint code = (uint)best_index_int8(16, kvalues_iq4nl_f, x * id);
    const float level = kvalues_iq4nl_f[code];
    const float product = kvtuner_sum_of_halves(x * x * level * x);
    const float squares = kvtuner_sum_of_halves(x * x * level * level);
    if (lane == 0) {
        y.d = (half)(squares > 0.0f ? product / squares : d);
    }
    kvtuner_put_four_bits(code, lane, y.qs);
}

// `count` times 32 values, from value `at` of the row on, a whole number of blocks
template <typename BLOCK>
void kvtuner_store(thread const float * x, int count, bool, ushort lane, device BLOCK * row, int at) {
    for (int i = 0; i < count; ++i) {
        kvtuner_put(x[i], lane, row[at / 32 + i]);
    }
}

#define KVTUNER_STORE_PLAIN(T)                                                                                \
    inline void kvtuner_store(thread const float * x, int count, bool, ushort lane, device T * row, int at) { \
        for (int i = 0; i < count; ++i) {                                                                     \
            row[at + 32 * i + lane] = (T)x[i];                                                                \
        }                                                                                                     \
    }
KVTUNER_STORE_PLAIN(float)
KVTUNER_STORE_PLAIN(half)
#if defined(GGML_METAL_HAS_BF16)
KVTUNER_STORE_PLAIN(bfloat)
#endif
#undef KVTUNER_STORE_PLAIN

#define KVTUNER_STORE_LOW_BITS(BLOCK)                                                                                 \
    inline void kvtuner_store(thread const float * x, int count, bool is_of_values, ushort lane, device BLOCK * row,  \
                              int at) {                                                                               \
        for (int i = 0; i < count; i += 2) {                                                                          \
            kvtuner_quantize_together<BLOCK>(float2(x[i], x[i + 1]), is_of_values, lane, row[(at + 32 * i) / QK_NL]); \
        }                                                                                                             \
    }
KVTUNER_STORE_LOW_BITS(block_q2_nl)
KVTUNER_STORE_LOW_BITS(block_q3_nl)
#undef KVTUNER_STORE_LOW_BITS
