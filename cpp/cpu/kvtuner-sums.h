// Sums of weights, [row][token], in the order of the tokens.
#pragma once

#include "kvtuner-transpose.h"

#include <algorithm>

namespace kvtuner {

using quad = row_part<int32_t, 16>;  // the bits of four floats: only integers can be interleaved
using float_quad = row_part<float, 16>;

// Adds the weights of n tokens, and the zeros that pad them to four, to the sums of 4 * N rows. Each step waits for the
// last, so rows go side by side.
template <int N>
inline void add_many_weights(const float * weights, int64_t wide, int64_t n, float * sums) {
    float_quad now[N];
    for (int i = 0; i < N; ++i) {
        now[i] = load<float_quad>(sums + 4 * i);
    }
    for (int64_t t = 0; t < n; t += 4) {
        for (int i = 0; i < N; ++i) {
            quad square[4];
            for (int r = 0; r < 4; ++r) {
                square[r] = load<quad>(weights + (4 * i + r) * wide + t);
            }
            exchange<int32_t, 16>(square);
            for (const quad & token : square) {
                now[i] += (float_quad)token;
            }
        }
    }
    for (int i = 0; i < N; ++i) {
        store(sums + 4 * i, now[i]);
    }
}

// the same of N rows
template <int N>
inline void add_weights_of(const float * weights, int64_t wide, int64_t n, float * sums) {
    float now[N];
    std::copy(sums, sums + N, now);
    for (int64_t t = 0; t < n; ++t) {
        for (int r = 0; r < N; ++r) {
            now[r] += weights[r * wide + t];
        }
    }
    std::copy(now, now + N, sums);
}

inline void add_weights(const float * weights, int64_t wide, int64_t n, int64_t n_row, float * sums) {
    int64_t r = 0;
    for (; r + 16 <= n_row; r += 16) {
        add_many_weights<4>(weights + r * wide, wide, n, sums + r);
    }
    for (; r + 6 <= n_row; r += 6) {
        add_weights_of<6>(weights + r * wide, wide, n, sums + r);
    }
    for (; r + 3 <= n_row; r += 3) {
        add_weights_of<3>(weights + r * wide, wide, n, sums + r);
    }
    for (; r < n_row; ++r) {
        add_weights_of<1>(weights + r * wide, wide, n, sums + r);
    }
}

}  // namespace kvtuner
