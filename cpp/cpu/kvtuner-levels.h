// Levels, the small integers of a block, and their values as floats.
#pragma once

#include "kvtuner-simd.h"

namespace kvtuner {

constexpr int PART = 16;  // values

using levels = int8_t __attribute__((vector_size(PART)));
using codes = uint8_t __attribute__((vector_size(PART)));

// as many levels as a vector has lanes, as floats
inline vec load_levels(const int8_t * x) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)x)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x)));
#elif defined(__ARM_NEON) && defined(__aarch64__)
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(load<int32_t>(x)));
    return (vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
#else
    vec floats;
    for (int i = 0; i < LANES; ++i) {
        floats[i] = (float)x[i];
    }
    return floats;
#endif
}

// element i of the result is table[x[i]], x below 16
inline levels look_up(levels table, codes x) {
#if defined(__SSSE3__)
    return (levels)_mm_shuffle_epi8((__m128i)table, (__m128i)x);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (levels)vqtbl1q_s8((int8x16_t)table, (uint8x16_t)x);
#else
    levels found;
    for (int i = 0; i < PART; ++i) {
        found[i] = table[x[i]];
    }
    return found;
#endif
}

}  // namespace kvtuner
