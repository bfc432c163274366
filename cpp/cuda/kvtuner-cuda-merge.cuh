// The sums of all parts of a row of attention, and what its head's sink adds.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"

#include "ggml-cuda/common.cuh"

namespace kvtuner::cuda {

constexpr int MERGE_WARPS = 8;
constexpr float LOG2_OF_E = 1.44269504f;

inline __device__ float most_of_block(float x, float * shared) {
    for (int i = 16; i > 0; i /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, i));
    }
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = x;
    }
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < MERGE_WARPS; ++i) {
        x = fmaxf(x, shared[i]);
    }
    __syncthreads();
    return x;
}

constexpr int VALUES_AT_ONCE = 32;  // of a block of threads, a lane each

// a block of threads has some values of one column: a query of a query head
inline __global__ void __launch_bounds__(MERGE_WARPS * 32) merge_parts(const merge_args a) {
    __shared__ float most[MERGE_WARPS], sums[MERGE_WARPS], values[MERGE_WARPS][VALUES_AT_ONCE];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n_columns = gridDim.y, column = blockIdx.y, stream = blockIdx.z;
    const int size_v = gridDim.x * VALUES_AT_ONCE, value = blockIdx.x * VALUES_AT_ONCE + lane;
    const int of_head = a.n_query * a.group, query = column % of_head / a.group;
    const int head = column / of_head * a.group + column % a.group;
    const float sink = a.sinks ? a.sinks[head] * LOG2_OF_E : -INFINITY;
    const int64_t first = (int64_t)stream * a.n_parts * n_columns + column;

    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    float above = sink;
    for (int i = threadIdx.x; i < a.n_parts; i += blockDim.x) {
        above = fmaxf(above, a.sums[first + (int64_t)i * n_columns].x);
    }
    above = most_of_block(above, most);

    float x = 0, sum = 0;
#pragma unroll 8
    for (int i = warp; i < a.n_parts; i += MERGE_WARPS) {
        const int64_t at = first + (int64_t)i * n_columns;
        const float2 of_part = a.sums[at];
        const float weight = exp2f(of_part.x - above);
        sum += weight * of_part.y;
        x += weight * a.parts[at * size_v + value];
    }
    values[warp][lane] = x;
    sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = exp2f(sink - above);
        x = 0;
        for (int i = 0; i < MERGE_WARPS; ++i) {
            sum += sums[i];
            x += values[i][lane];
        }
        const int n_head = n_columns / a.n_query;
        a.out[(((int64_t)stream * a.n_query + query) * n_head + head) * size_v + value] = sum > 0 ? x / sum : 0;
    }
}

}  // namespace kvtuner::cuda
