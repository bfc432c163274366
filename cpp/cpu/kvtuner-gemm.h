// Matrix products on small tiles whose sums stay in registers. Every element is summed in the order of k, rounded once
// a step: the same bits whatever the shape of the tiles.
#pragma once

#include "kvtuner-simd.h"

#include <algorithm>

namespace kvtuner {

// A matrix whose element (i, k) lies at i * row + k
struct matrix {
    const float * data;
    int64_t row;
};

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

// rows of a tile of `width` vectors: its sums, and the operands of a step, fit the registers
constexpr int most_rows(int width) {
    return width == 1 ? 8 : width == 4 && REGISTERS == 16 ? 3 : (REGISTERS - width) / width - 1;
}

// where sums begin: at zero, at what C holds, or at a number of each row
enum class from { zero, sums, starts };

// C[M x WIDTH vectors] (+)= A[M x n_k] B[n_k x WIDTH vectors]
template <int M, int WIDTH, from BEGIN>
inline void tile_product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t n_k,
                         const float * starts) {
    vec sums[M][WIDTH];
    for (int i = 0; i < M; ++i) {
        for (int j = 0; j < WIDTH; ++j) {
            sums[i][j] = BEGIN == from::sums     ? load<vec>(c + i * ldc + j * LANES)
                         : BEGIN == from::starts ? splat(starts[i])
                                                 : vec{};
        }
    }
    for (int64_t k = 0; k < n_k; ++k) {
        if constexpr (M < WIDTH) {  // the operands of which there are fewer wait in registers
            vec left[M];
            for (int i = 0; i < M; ++i) {
                left[i] = splat(a.data[i * a.row + k]);
            }
            for (int j = 0; j < WIDTH; ++j) {
                const vec right = load<vec>(b + k * ldb + j * LANES);
                for (int i = 0; i < M; ++i) {
                    sums[i][j] = multiply_add(left[i], right, sums[i][j]);
                }
            }
        } else {
            vec right[WIDTH];
            for (int j = 0; j < WIDTH; ++j) {
                right[j] = load<vec>(b + k * ldb + j * LANES);
            }
            for (int i = 0; i < M; ++i) {
                const vec left = splat(a.data[i * a.row + k]);
                for (int j = 0; j < WIDTH; ++j) {
                    sums[i][j] = multiply_add(left, right[j], sums[i][j]);
                }
            }
        }
    }
    for (int i = 0; i < M; ++i) {
        for (int j = 0; j < WIDTH; ++j) {
            store(c + i * ldc + j * LANES, sums[i][j]);
        }
    }
}

// m rows, M or fewer
template <int M, int WIDTH, from BEGIN>
inline void rows_product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t m, int64_t n_k,
                         const float * starts) {
    if constexpr (M > 0) {
        if (m == M) {
            tile_product<M, WIDTH, BEGIN>(c, ldc, a, b, ldb, n_k, starts);
        } else {
            rows_product<M - 1, WIDTH, BEGIN>(c, ldc, a, b, ldb, m, n_k, starts);
        }
    }
}

// WIDTH vectors of columns, their rows in tiles of about equal size
template <int WIDTH, from BEGIN>
inline void column_product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t m,
                           int64_t n_k, const float * starts) {
    constexpr int M = most_rows(WIDTH);
    const int64_t tiles = (m + M - 1) / M;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t i = m * t / tiles, end = m * (t + 1) / tiles;
        rows_product<M, WIDTH, BEGIN>(c + i * ldc, ldc, { a.data + i * a.row, a.row }, b, ldb, end - i, n_k,
                                      starts ? starts + i : nullptr);
    }
}

// C[m x n] (+)= A[m x n_k] B[n_k x n], n whole vectors; starts: [m]
template <from BEGIN>
inline void product(float * c, int64_t ldc, const matrix & a, const float * b, int64_t ldb, int64_t m, int64_t n,
                    int64_t n_k, const float * starts = nullptr) {
    int64_t j = 0;
    for (; (REGISTERS > 16 || m <= most_rows(4)) && j + 4 * LANES <= n; j += 4 * LANES) {
        column_product<4, BEGIN>(c + j, ldc, a, b + j, ldb, m, n_k, starts);
    }
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        column_product<2, BEGIN>(c + j, ldc, a, b + j, ldb, m, n_k, starts);
    }
    for (; j < n; j += LANES) {
        column_product<1, BEGIN>(c + j, ldc, a, b + j, ldb, m, n_k, starts);
    }
}

}  // namespace kvtuner
