// Vectors of floats in the compiler's own notation, as wide as the machine has them, and what attention does with them:
// matrix products on small tiles, and powers of two.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__FMA__)
#    include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#    include <arm_neon.h>
#endif

namespace kvtuner {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE_ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int TILE_ROWS = 4;
#else
constexpr int LANES = 4;
constexpr int TILE_ROWS = 8;
#endif

// Channels lie in whole vectors, query rows in vectors of at most 8: a decode step has few.
constexpr int ROW_LANES = LANES < 8 ? LANES : 8;

using vec = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
using row_vec = float __attribute__((vector_size(ROW_LANES * sizeof(float)), aligned(4)));
using row_ivec = int32_t __attribute__((vector_size(ROW_LANES * sizeof(float)), aligned(4)));

constexpr int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

template <typename V, typename T>
inline V load(const T * x) {
    V v;
    memcpy(&v, x, sizeof(v));
    return v;
}

template <typename V, typename T>
inline void store(T * x, V v) {
    memcpy(x, &v, sizeof(v));
}

// a * b + c, rounded once where the machine can: said outright, since compilers choose by the loop around it
#if defined(__AVX512F__)
inline vec multiply_add(float a, vec b, vec c) {
    return (vec)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
}
#endif

inline row_vec multiply_add(float a, row_vec b, row_vec c) {
#if defined(__FMA__)
    return (row_vec)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (row_vec)vfmaq_n_f32((float32x4_t)c, (float32x4_t)b, a);
#else
    return a * b + c;
#endif
}

inline row_vec splat(float x) {
    return row_vec{} + x;
}

template <typename V>
inline V select(row_ivec mask, V yes, V no) {
    return (V)((mask & (row_ivec)yes) | (~mask & (row_ivec)no));
}

inline row_vec vmax(row_vec a, row_vec b) {
    return select(a > b, a, b);
}

constexpr float LOWEST = -1048576.0f;  // scores below count as not seen
constexpr float ROUND = 12582912.0f;   // 1.5 * 2^23: what is added to it is rounded to an integer

// x, not below LOWEST, as the integer next to it
inline row_ivec nearest(row_vec x) {
    return (row_ivec)(vmax(x, splat(LOWEST)) + ROUND) - (row_ivec)splat(ROUND);
}

// 2^n, 0 below the smallest normal number
inline row_vec power_of_two(row_ivec n) {
    return (row_vec)((select(n < -126, row_ivec{} - 127, n) + 127) << 23);
}

// 2^(x - reference), relative error 1e-7. Another reference changes the exponent alone, not a bit of the fraction.
inline row_vec exp2_of(row_vec x, row_ivec reference) {
    const row_vec seen = vmax(x, splat(LOWEST));
    const row_vec shifted = seen + ROUND;
    const row_vec r = seen - (shifted - ROUND);
    row_vec p = splat(1.535336188e-4f);
    p = p * r + 1.339887440e-3f;
    p = p * r + 9.618437358e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472028e-1f;
    p = p * r + 1.0f;
    const row_ivec exponent = (row_ivec)shifted - (row_ivec)splat(ROUND) - reference;
    const row_ivec is_zero = (x < LOWEST) | (exponent < -125);
    return select(is_zero, row_vec{}, (row_vec)((row_ivec)p + (select(is_zero, row_ivec{}, exponent) << 23)));
}

// A matrix whose element (i, k) lies at i * row + k * column
struct matrix {
    const float * data;
    int64_t row, column;
};

// C[M x WIDTH vectors] (+)= A[M x n_k] B[n_k x WIDTH vectors]; every element is summed in the order of k
template <typename V, int M, int WIDTH, bool ADD>
inline void tile_product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t n_k) {
    constexpr int N = sizeof(V) / sizeof(float);
    V sums[M][WIDTH];
    for (int i = 0; i < M; ++i) {
        for (int j = 0; j < WIDTH; ++j) {
            sums[i][j] = ADD ? load<V>(c + i * ldc + j * N) : V{};
        }
    }
    for (int64_t k = 0; k < n_k; ++k) {
        V right[WIDTH];
        for (int j = 0; j < WIDTH; ++j) {
            right[j] = load<V>(b + k * ldb + j * N);
        }
        for (int i = 0; i < M; ++i) {
            const float left = a.data[i * a.row + k * a.column];
            for (int j = 0; j < WIDTH; ++j) {
                sums[i][j] = multiply_add(left, right[j], sums[i][j]);
            }
        }
    }
    for (int i = 0; i < M; ++i) {
        for (int j = 0; j < WIDTH; ++j) {
            store(c + i * ldc + j * N, sums[i][j]);
        }
    }
}

// the last rows, M or fewer
template <typename V, int M, int WIDTH, bool ADD>
inline void rest_product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t m,
                         int64_t n_k) {
    if constexpr (M > 0) {
        if (m == M) {
            tile_product<V, M, WIDTH, ADD>(c, ldc, a, b, ldb, n_k);
        } else {
            rest_product<V, M - 1, WIDTH, ADD>(c, ldc, a, b, ldb, m, n_k);
        }
    }
}

template <typename V, int WIDTH, bool ADD>
inline void column_product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t m,
                           int64_t n_k) {
    for (int64_t i = 0; i < m; i += TILE_ROWS) {
        rest_product<V, TILE_ROWS, WIDTH, ADD>(c + i * ldc, ldc, { a.data + i * a.row, a.row, a.column }, b, ldb,
                                               m - i < TILE_ROWS ? m - i : TILE_ROWS, n_k);
    }
}

// C[m x n] (+)= A[m x n_k] B[n_k x n], n whole row vectors
template <bool ADD>
inline void product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t m, int64_t n,
                    int64_t n_k) {
    int64_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        column_product<vec, 2, ADD>(c + j, ldc, a, b + j, ldb, m, n_k);
    }
    for (; j + LANES <= n; j += LANES) {
        column_product<vec, 1, ADD>(c + j, ldc, a, b + j, ldb, m, n_k);
    }
    for (; j < n; j += ROW_LANES) {
        column_product<row_vec, 1, ADD>(c + j, ldc, a, b + j, ldb, m, n_k);
    }
}

}  // namespace kvtuner
