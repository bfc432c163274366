// The levels of a block of each type, WIDE bytes at a time, with its scale d and offset m: value = d * level (+ m).
#pragma once

#include "kvtuner-levels.h"
#include "kvtuner-lowbit.h"
#include "kvtuner-lowbit-dot.h"
#include "kvtuner-transpose.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml-cpu/simd-mappings.h"

namespace kvtuner {

#if defined(__AVX2__)
constexpr int WIDE = 32;
#else
constexpr int WIDE = 16;
#endif

using wide_levels = row_part<int8_t, WIDE>;

inline levels low_half(const uint8_t * qs) {
    return (levels)(load<codes>(qs) & 15);
}

inline levels high_half(const uint8_t * qs) {
    return (levels)(load<codes>(qs) >> 4);
}

// levels 0 to 15 and 16 to 31 of a block of 32 as one vector, or the j-th of them
inline wide_levels join(levels low, levels high, int j) {
#if defined(__AVX2__)
    (void)j;
    return (wide_levels)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)low), (__m128i)high, 1);
#else
    return j ? high : low;
#endif
}

// 16 in each byte whose bit of the 16 bits is set
inline levels fifth_bits(const uint8_t * bits) {
    using two = uint64_t __attribute__((vector_size(PART)));
    constexpr uint64_t EVERY_BYTE = 0x0101010101010101;
    const two spread = { bits[0] * EVERY_BYTE, bits[1] * EVERY_BYTE };
    const codes one_each = { 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128 };
    return (levels)((codes)(((codes)spread & one_each) != 0) & 16);
}

inline wide_levels levels_of(const block_q8_0 & x, int j) {
    return load<wide_levels>(x.qs + j * WIDE);
}

inline wide_levels levels_of(const block_q4_0 & x, int j) {
    return join(low_half(x.qs), high_half(x.qs), j) - 8;
}

inline wide_levels levels_of(const block_q4_1 & x, int j) {
    return join(low_half(x.qs), high_half(x.qs), j);
}

inline wide_levels levels_of(const block_q5_0 & x, int j) {
    return join(low_half(x.qs) | fifth_bits(x.qh), high_half(x.qs) | fifth_bits(x.qh + 2), j) - 16;
}

inline wide_levels levels_of(const block_q5_1 & x, int j) {
    return join(low_half(x.qs) | fifth_bits(x.qh), high_half(x.qs) | fifth_bits(x.qh + 2), j);
}

inline wide_levels levels_of(const block_iq4_nl & x, int j) {
    const levels table = load<levels>(kvalues_iq4nl);
    return join(look_up(table, (codes)low_half(x.qs)), look_up(table, (codes)high_half(x.qs)), j);
}

// the j-th part of the 64 levels that the dot products begin with
inline wide_levels part_of(const kvtuner_block_levels & found, int j) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
    return (wide_levels)(j ? _mm512_extracti64x4_epi64(found, 1) : _mm512_castsi512_si256(found));
#elif defined(__AVX2__) && defined(__FMA__)
    return (wide_levels)(j ? found.second : found.first);
#else
    return load<wide_levels>((const int8_t *)&found + j * WIDE);
#endif
}

inline wide_levels levels_of(const block_q2_nl & x, int j) {
    return part_of(kvtuner_levels_of(x), j);
}

inline wide_levels levels_of(const block_q3_nl & x, int j) {
    return part_of(kvtuner_levels_of(x), j);
}

template <typename BLOCK>
constexpr bool HAS_OFFSET = false;
template <>
constexpr bool HAS_OFFSET<block_q4_1> = true;
template <>
constexpr bool HAS_OFFSET<block_q5_1> = true;

// numbers of N_ROW blocks side by side
using row_floats = row_part<float, N_ROW * sizeof(float)>;

// of each block the scale, its first half (0), or the offset, its second (1)
template <typename BLOCK, size_t... I>
inline row_floats halves_of(const BLOCK * const * blocks, int which, std::index_sequence<I...>) {
    // in a register: stored one by one they could not be loaded at once
    const row_part<uint16_t, N_ROW * sizeof(uint16_t)> x = { ((const ggml_half *)blocks[I])[which]... };
#if defined(__AVX512F__)
    return (row_floats)_mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__)
    return (row_floats)_mm256_cvtph_ps((__m128i)x);
#else
    row_floats floats;
    ggml_cpu_fp16_to_fp32((const ggml_fp16_t *)&x, (float *)&floats, N_ROW);
    return floats;
#endif
}

}  // namespace kvtuner
