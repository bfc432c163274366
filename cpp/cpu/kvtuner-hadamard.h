// The Walsh-Hadamard transform that rotates keys, values and queries, with the additions of upstream's (ops.cpp) in
// their order: the result is the same to the bit.
#pragma once

#include "kvtuner-simd.h"

#include <cstddef>
#include <utility>

namespace kvtuner {

// lane i takes what lane i ^ H has
template <int H, size_t... I>
inline vec neighbours(vec x, std::index_sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, x, (I ^ H)...);
#else
    return __builtin_shuffle(x, ivec{ (int32_t)(I ^ H)... });
#endif
}

template <int H>
inline vec add_neighbours(vec x) {
    vec sign;
    for (int i = 0; i < LANES; ++i) {
        sign[i] = i & H ? -1.0f : 1.0f;
    }
    return neighbours<H>(x, std::make_index_sequence<LANES>()) + x * sign;
}

// of n values, a power of two and at least LANES, in place and not scaled
inline void transform(float * x, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec v = add_neighbours<2>(add_neighbours<1>(load<vec>(x + i)));
        if constexpr (LANES >= 8) {
            v = add_neighbours<4>(v);
        }
        if constexpr (LANES >= 16) {
            v = add_neighbours<8>(v);
        }
        store(x + i, v);
    }
    for (int64_t half = LANES; half < n; half *= 2) {
        for (int64_t i = 0; i < n; i += 2 * half) {
            for (int64_t j = i; j < i + half; j += LANES) {
                const vec low = load<vec>(x + j);
                const vec high = load<vec>(x + j + half);
                store(x + j, low + high);
                store(x + j + half, low - high);
            }
        }
    }
}

}  // namespace kvtuner
