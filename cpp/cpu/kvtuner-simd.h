// Vectors of floats in the compiler's own notation, as wide as the machine has them.
#pragma once

#include <cstdint>
#include <initializer_list>

#if defined(__SSSE3__)
#    include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#    include <arm_neon.h>
#endif

namespace kvtuner {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using vec = float __attribute__((vector_size(LANES * sizeof(float))));
using ivec = int32_t __attribute__((vector_size(LANES * sizeof(float))));

constexpr int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

// One instruction each, from any address. A vector type of less than its own alignment and memcpy would do the same,
// but GCC 12 then moves each vector through the stack in two halves and loads it again, which processors can't forward.
template <typename V, typename T>
inline V load(const T * x) {
    typedef V any __attribute__((may_alias, aligned(alignof(T))));
    return *(const any *)x;
}

template <typename V, typename T>
inline void store(T * x, V v) {
    typedef V any __attribute__((may_alias, aligned(alignof(T))));
    *(any *)x = v;
}

// a * b + c, rounded once where the machine can: said outright, since compilers choose by the loop around it
inline vec multiply_add(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// said outright, since 0 + x is an addition
inline vec splat(float x) {
#if defined(__AVX512F__)
    return (vec)_mm512_set1_ps(x);
#elif defined(__AVX__)
    return (vec)_mm256_set1_ps(x);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (vec)vdupq_n_f32(x);
#else
    return vec{ x, x, x, x };
#endif
}

template <typename V>
inline V select(ivec mask, V yes, V no) {
    return (V)((mask & (ivec)yes) | (~mask & (ivec)no));
}

// a where b is no number
inline vec vmax(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)b, (__m256)a);
#else
    return select(b > a, b, a);
#endif
}

inline float largest(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; ++i) {
        most = x[i] > most ? x[i] : most;
    }
    return most;
}

constexpr float LOWEST = -1048576.0f;  // scores below count as not seen
constexpr float HIGHEST = 4194304.0f;  // 2^22: up to here adding ROUND does what it should
constexpr float ROUND = 12582912.0f;   // 1.5 * 2^23: what is added to it is rounded to an integer

// 2^n, 0 below the smallest normal number
inline float power_of_two(int32_t n) {
    const int32_t bits = n < -126 ? 0 : (n + 127) << 23;
    return load<float>(&bits);
}

// 2^(x - reference), relative error 1e-7. Another reference changes the exponent alone, not a bit of the fraction.
inline vec exp2_of(vec x, int32_t reference) {
    const vec seen = vmax(x, splat(LOWEST));
    const vec shifted = seen + ROUND;
    const vec r = seen - (shifted - ROUND);
    vec p = splat(1.535336188e-4f);
    for (float c : { 1.339887440e-3f, 9.618437358e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.0f }) {
        p = multiply_add(p, r, splat(c));
    }
    const ivec exponent = (ivec)shifted + (127 - reference - (ivec)splat(ROUND));
    const ivec is_seen = (x >= LOWEST) & (exponent > 1);
    return p * (vec)(is_seen & (exponent << 23));
}

}  // namespace kvtuner
