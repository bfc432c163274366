// The Walsh-Hadamard transform of a row that a warp holds.
#pragma once

#include "kvtuner-cuda-runtime.cuh"

namespace kvtuner::cuda {

constexpr int VALUES_OF_LANES = 128;  // four of each lane

// a row: lane l has values 128 k + 4 l to 128 k + 4 l + 3
template <int N>
using row_values = float4[(N + VALUES_OF_LANES - 1) / VALUES_OF_LANES];

// a + b, or with -1 as the sign a - b
inline __device__ float4 plus(const float4 a, const float sign, const float4 b) {
    return make_float4(a.x + sign * b.x, a.y + sign * b.y, a.z + sign * b.z, a.w + sign * b.w);
}

inline __device__ float4 exchanged(const float4 x, const int lanes) {
    return make_float4(__shfl_xor_sync(0xffffffff, x.x, lanes), __shfl_xor_sync(0xffffffff, x.y, lanes),
                       __shfl_xor_sync(0xffffffff, x.z, lanes), __shfl_xor_sync(0xffffffff, x.w, lanes));
}

// orthonormal, of n values at a time, a power of two from 4 on; 0: none
template <int K>
__device__ void rotate_row(float4 (&x)[K], const int n, const int lane) {
    if (n == 0) {
        return;
    }
    const float scale = rsqrtf((float)n);
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const float4 v = x[k];
        const float a = v.x + v.y, b = v.x - v.y, c = v.z + v.w, d = v.z - v.w;
        x[k] = make_float4((a + c) * scale, (b + d) * scale, (a - c) * scale, (b - d) * scale);
    }
#pragma unroll 1
    for (int lanes = 1; lanes < 32 && 4 * lanes < n; lanes *= 2) {
        const float sign = (lane & lanes) != 0 ? -1 : 1;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            x[k] = plus(exchanged(x[k], lanes), sign, x[k]);
        }
    }
#pragma unroll
    for (int step = 1; step < K; step *= 2) {
        if (VALUES_OF_LANES * step < n) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                if ((k & step) == 0) {
                    const float4 low = x[k], high = x[k + step];
                    x[k] = plus(low, 1, high);
                    x[k + step] = plus(low, -1, high);
                }
            }
        }
    }
}

}  // namespace kvtuner::cuda
