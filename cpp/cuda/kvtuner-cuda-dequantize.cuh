// Two values of a block of q2_nl or q3_nl, as the templates of upstream ask for them.
#pragma once

#include "kvtuner-quantize.h"

#include <cstdint>

// values of a block that one call gives: j and j + QK_NL / 2, which lie in the same bytes
#define KVTUNER_NL_AT_ONCE 2

namespace kvtuner::cuda {

// four levels of a type, from `first` on, as bytes; none behind its last one
template <typename BLOCK>
__device__ constexpr unsigned levels_from(const int first) {
    unsigned bytes = 0;
    for (int i = first; i < first + 4 && i < 2 * low_bit<BLOCK>::N; ++i) {
        bytes |= (unsigned)(unsigned char)(signed char)low_bit<BLOCK>::LEVELS[i] << 8 * (i - first);
    }
    return bytes;
}

template <typename BLOCK>
__device__ float level_of(const int code) {
    constexpr unsigned low = levels_from<BLOCK>(0);
    constexpr unsigned high = levels_from<BLOCK>(4);
    return (float)(signed char)__byte_perm(low, high, code);
}

// the codes of values j and j + QK_NL / 2 (j < QK_NL / 2), of which the first is `half` 0
inline __device__ int code_of(const block_q2_nl & x, const int j, const int half) {
    return x.qs[j % 16] >> (2 * (j / 16) + 4 * half) & 3;
}

inline __device__ int code_of(const block_q3_nl & x, const int j, const int half) {
    return (x.qs[j % 16] >> (2 * (j / 16) + 4 * half) & 3) | (x.qh[j % 8] >> (j / 8 + 4 * half) & 1) << 2;
}

}  // namespace kvtuner::cuda

// a dequantize_kernel_t
template <typename BLOCK>
__device__ void kvtuner_dequantize(const void * blocks, const int64_t block, const int j, float2 & values) {
    const BLOCK & x = ((const BLOCK *)blocks)[block];
    const float d = x.d;
    values.x = d * kvtuner::cuda::level_of<BLOCK>(kvtuner::cuda::code_of(x, j, 0));
    values.y = d * kvtuner::cuda::level_of<BLOCK>(kvtuner::cuda::code_of(x, j, 1));
}
