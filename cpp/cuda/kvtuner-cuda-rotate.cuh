// The Walsh-Hadamard transform of a row that a warp holds.
#pragma once

namespace kvtuner::cuda {

constexpr int VALUES_OF_LANES = 128;  // four of each lane

// a row: lane l has values 128 k + 4 l to 128 k + 4 l + 3
template <int N>
using row_values = float4[(N + VALUES_OF_LANES - 1) / VALUES_OF_LANES];

inline __device__ float4 sum_or_difference(const float4 a, const float4 b, const bool is_difference) {
    return is_difference ? make_float4(b.x - a.x, b.y - a.y, b.z - a.z, b.w - a.w)
                         : make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
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
            const float4 other = exchanged(x[k], lanes);
            x[k] = make_float4(other.x + sign * x[k].x, other.y + sign * x[k].y, other.z + sign * x[k].z,
                               other.w + sign * x[k].w);
        }
    }
#pragma unroll
    for (int step = 1; step < K; step *= 2) {
        if (VALUES_OF_LANES * step < n) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                if ((k & step) == 0) {
                    const float4 low = x[k], high = x[k + step];
                    x[k] = sum_or_difference(low, high, false);
                    x[k + step] = sum_or_difference(high, low, true);
                }
            }
        }
    }
}

}  // namespace kvtuner::cuda
