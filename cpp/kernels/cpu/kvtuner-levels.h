// 16 small integers times a scale, as floats.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#    include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#    include <arm_neon.h>
#endif

namespace kvtuner {

using levels = int8_t __attribute__((vector_size(16)));

inline void put(float * values, levels x, float d) {
#if defined(__AVX512F__)
    _mm512_storeu_ps(values, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)x)), _mm512_set1_ps(d)));
#elif defined(__AVX2__)
    const __m256 scale = _mm256_set1_ps(d);
    const __m256i low = _mm256_cvtepi8_epi32((__m128i)x), high = _mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)x, 8));
    _mm256_storeu_ps(values, _mm256_mul_ps(_mm256_cvtepi32_ps(low), scale));
    _mm256_storeu_ps(values + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), scale));
#elif defined(__ARM_NEON) && defined(__aarch64__)
    const int16x8_t low = vmovl_s8(vget_low_s8((int8x16_t)x)), high = vmovl_high_s8((int8x16_t)x);
    vst1q_f32(values, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), d));
    vst1q_f32(values + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(low)), d));
    vst1q_f32(values + 8, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), d));
    vst1q_f32(values + 12, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(high)), d));
#else
    for (int j = 0; j < 16; ++j) {
        values[j] = d * (float)x[j];
    }
#endif
}

inline void add(float * values, float m) {
    for (int j = 0; j < 16; ++j) {
        values[j] += m;
    }
}

}  // namespace kvtuner
