// The exchange of rows and columns within registers, of as many rows as these hold.
#pragma once

#include "kvtuner-simd.h"

#include <cstddef>
#include <utility>

namespace kvtuner {

#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int N_ROW = 8;
#else
constexpr int N_ROW = 16;
#endif
constexpr int LANE = 16;  // bytes that processors interleave together, of a wider register, too

// elements E in so many bytes
template <typename E, int BYTES>
struct vector_of {
    typedef E type __attribute__((vector_size(BYTES)));
};

template <typename E, int BYTES>
using row_part = typename vector_of<E, BYTES>::type;

// element i of the interleaved lower (upper) halves of lanes of n elements, as an index into two vectors of n_all
constexpr int interleaved(int i, int n, int n_all, bool is_high) {
    const int lane = i / n * n, j = i % n + (is_high ? n : 0);
    return lane + j / 2 + (j % 2 ? n_all : 0);
}

template <bool HIGH, typename E, int BYTES, size_t... I>
inline row_part<E, BYTES> interleave(row_part<E, BYTES> a, row_part<E, BYTES> b, std::index_sequence<I...>) {
    constexpr int N = LANE / sizeof(E), ALL = BYTES / sizeof(E);
#if defined(__clang__)
    return __builtin_shufflevector(a, b, interleaved(I, N, ALL, HIGH)...);
#else
    return __builtin_shuffle(a, b, row_part<E, BYTES>{ (E)interleaved(I, N, ALL, HIGH)... });
#endif
}

// Rows of integers E become their columns, lane by lane: vector k has in each of its lanes the columns of that lane
// from k * LANE / (N * sizeof(E)) on. Each round puts the top bit of a row's number behind the number of the column.
template <typename E, int BYTES, int N>
inline void exchange(row_part<E, BYTES> (&rows)[N]) {
    static_assert(BYTES == LANE || N * sizeof(E) <= LANE, "a column must lie in one lane");
    using all = std::make_index_sequence<BYTES / sizeof(E)>;
    for (int round = 1; round < N; round *= 2) {
        row_part<E, BYTES> next[N];
        for (int k = 0; k < N / 2; ++k) {
            next[2 * k] = interleave<false, E, BYTES>(rows[k], rows[k + N / 2], all());
            next[2 * k + 1] = interleave<true, E, BYTES>(rows[k], rows[k + N / 2], all());
        }
        for (int k = 0; k < N; ++k) {
            rows[k] = next[k];
        }
    }
}

// the same, written to memory
template <typename E, int BYTES>
inline void transpose(row_part<E, BYTES> (&rows)[N_ROW], E * columns) {
    exchange<E, BYTES>(rows);
    for (int k = 0; k < N_ROW; ++k) {
        store(columns + k * (BYTES / sizeof(E)), rows[k]);
    }
}

}  // namespace kvtuner
