#pragma once

#include "kvtuner-lowbit.h"

#include <immintrin.h>
#include <string.h>

typedef struct {
    __m256i first;
    __m256i second;
} kvtuner_block_levels;

typedef __m256 kvtuner_dot_sum;

// the two low bits of the 64 codes
static inline kvtuner_block_levels kvtuner_low_bits(const unsigned char * qs) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *)qs);
    const __m256i mask = _mm256_set1_epi8(3);
    const kvtuner_block_levels codes = {
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 2), bytes), mask),
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 6), _mm_srli_epi16(bytes, 4)), mask),
    };
    return codes;
}

static inline kvtuner_block_levels kvtuner_look_up(kvtuner_block_levels codes, __m128i levels) {
    const __m256i table = _mm256_set_m128i(levels, levels);
    const kvtuner_block_levels found = { _mm256_shuffle_epi8(table, codes.first),
                                         _mm256_shuffle_epi8(table, codes.second) };
    return found;
}

// 4 where a bit of high is set
static inline __m256i kvtuner_high_bits(long long high, __m256i bits) {
    const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_set1_epi64x(high), bits), bits);
    return _mm256_and_si256(is_set, _mm256_set1_epi8(4));
}

static inline kvtuner_block_levels kvtuner_levels_of(const block_q2_nl & x) {
    const __m128i levels = _mm_setr_epi8(KVTUNER_Q2_NL_LEVELS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return kvtuner_look_up(kvtuner_low_bits(x.qs), levels);
}

static inline kvtuner_block_levels kvtuner_levels_of(const block_q3_nl & x) {
    const __m128i levels = _mm_setr_epi8(KVTUNER_Q3_NL_LEVELS, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m256i first =
            _mm256_set_epi64x(0x0808080808080808, 0x0404040404040404, 0x0202020202020202, 0x0101010101010101);
    const __m256i second = _mm256_set_epi64x((long long)0x8080808080808080, 0x4040404040404040, 0x2020202020202020,
                                             0x1010101010101010);
    long long high;
    memcpy(&high, x.qh, sizeof(high));
    kvtuner_block_levels codes = kvtuner_low_bits(x.qs);
    codes.first = _mm256_or_si256(codes.first, kvtuner_high_bits(high, first));
    codes.second = _mm256_or_si256(codes.second, kvtuner_high_bits(high, second));
    return kvtuner_look_up(codes, levels);
}

static inline kvtuner_dot_sum kvtuner_dot_zero(void) {
    return _mm256_setzero_ps();
}

static inline __m256 kvtuner_dot_half(__m256 sum, __m256i x, const block_q8_0 * y, float d) {
    const __m256i values = _mm256_loadu_si256((const __m256i *)y->qs);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(values, x));
    const __m256i dots = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(d), sum);
}

static inline kvtuner_dot_sum kvtuner_dot_add(kvtuner_dot_sum sum, kvtuner_block_levels x, const block_q8_0 * y,
                                              float d0, float d1) {
    return kvtuner_dot_half(kvtuner_dot_half(sum, x.first, y, d0), x.second, y + 1, d1);
}

static inline float kvtuner_dot_total(kvtuner_dot_sum sum) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
