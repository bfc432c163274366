// The Walsh-Hadamard transform that rotates keys, values and queries, with the additions of upstream's (ops.cpp) in
// their order: the result is the same to the bit.
#pragma once

#include "kvtuner-vector.h"

namespace kvtuner {

// lane i takes what lane i ^ H has
template <int H>
inline row_vec neighbours(row_vec x) {
#if defined(__clang__)
    if constexpr (ROW_LANES == 4) {
        return __builtin_shufflevector(x, x, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H);
    } else {
        return __builtin_shufflevector(x, x, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H, 4 ^ H, 5 ^ H, 6 ^ H, 7 ^ H);
    }
#else
    row_ivec from;
    for (int i = 0; i < ROW_LANES; ++i) {
        from[i] = i ^ H;
    }
    return __builtin_shuffle(x, from);
#endif
}

template <int H>
inline row_vec add_neighbours(row_vec x) {
    row_vec sign;
    for (int i = 0; i < ROW_LANES; ++i) {
        sign[i] = i & H ? -1.0f : 1.0f;
    }
    return neighbours<H>(x) + x * sign;
}

// of n values, a power of two and at least ROW_LANES, in place and not scaled
inline void transform(float * x, int64_t n) {
    for (int64_t i = 0; i < n; i += ROW_LANES) {
        row_vec v = add_neighbours<2>(add_neighbours<1>(load<row_vec>(x + i)));
        if constexpr (ROW_LANES == 8) {
            v = add_neighbours<4>(v);
        }
        store(x + i, v);
    }
    for (int64_t half = ROW_LANES; half < n; half *= 2) {
        for (int64_t i = 0; i < n; i += 2 * half) {
            for (int64_t j = i; j < i + half; j += ROW_LANES) {
                const row_vec low = load<row_vec>(x + j);
                const row_vec high = load<row_vec>(x + j + half);
                store(x + j, low + high);
                store(x + j + half, low - high);
            }
        }
    }
}

}  // namespace kvtuner
