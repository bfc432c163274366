#pragma once

#include "kvtuner-lowbit.h"

#include <immintrin.h>
#include <string.h>

typedef __m512i kvtuner_block_levels;
typedef __m512 kvtuner_dot_sum;

// the two low bits of the 64 codes
static inline __m512i kvtuner_low_bits(const unsigned char * qs) {
    const __m512i shifts = _mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)qs));
    return _mm512_and_si512(_mm512_srlv_epi32(bytes, shifts), _mm512_set1_epi8(3));
}

static inline kvtuner_block_levels kvtuner_levels_of(const block_q2_nl & x) {
    const __m128i levels = _mm_setr_epi8(KVTUNER_Q2_NL_LEVELS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), kvtuner_low_bits(x.qs));
}

static inline kvtuner_block_levels kvtuner_levels_of(const block_q3_nl & x) {
    const __m128i levels = _mm_setr_epi8(KVTUNER_Q3_NL_LEVELS, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i bits =
            _mm512_set_epi64((long long)0x8080808080808080, 0x4040404040404040, 0x2020202020202020, 0x1010101010101010,
                             0x0808080808080808, 0x0404040404040404, 0x0202020202020202, 0x0101010101010101);
    long long high;
    memcpy(&high, x.qh, sizeof(high));
    const __mmask64 is_high = _mm512_test_epi8_mask(_mm512_set1_epi64(high), bits);
    const __m512i low = kvtuner_low_bits(x.qs);
    const __m512i codes = _mm512_mask_add_epi8(low, is_high, low, _mm512_set1_epi8(4));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), codes);
}

static inline kvtuner_dot_sum kvtuner_dot_zero(void) {
    return _mm512_setzero_ps();
}

static inline kvtuner_dot_sum kvtuner_dot_add(kvtuner_dot_sum sum, kvtuner_block_levels x, const block_q8_0 * y,
                                              float d0, float d1) {
    const __m256i first = _mm256_loadu_si256((const __m256i *)y[0].qs);
    const __m256i second = _mm256_loadu_si256((const __m256i *)y[1].qs);
    const __m512i values = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    const __m512i sizes = _mm512_abs_epi8(x);
    const __m512i with_sign = _mm512_mask_sub_epi8(values, _mm512_movepi8_mask(x), _mm512_setzero_si512(), values);
#if defined(__AVX512VNNI__)
    const __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), sizes, with_sign);
#else
    const __m512i dots = _mm512_madd_epi16(_mm512_maddubs_epi16(sizes, with_sign), _mm512_set1_epi16(1));
#endif
    const __m512 scales = _mm512_insertf32x8(_mm512_set1_ps(d0), _mm256_set1_ps(d1), 1);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scales, sum);
}

static inline float kvtuner_dot_total(kvtuner_dot_sum sum) {
    return _mm512_reduce_add_ps(sum);
}
