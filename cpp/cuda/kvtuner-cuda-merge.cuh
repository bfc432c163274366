// The sums of all parts of a row of attention, and what its head's sink adds.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-rotate.cuh"

#include "ggml-cuda/common.cuh"

namespace kvtuner::cuda {

constexpr int MERGE_WARPS = 16;

// where the row of a column of a stream goes, and the sink of its head
struct output_row {
    float * out;
    float sink;

    __device__ output_row(const merge_args & a, const int size_v, const int column, const int stream) {
        const int of_head = a.n_query * a.group, head_kv = column / of_head, of_group = column - head_kv * of_head;
        const int query = a.n_query == 1 ? 0 : of_group / a.group;
        const int head = head_kv * a.group + of_group - query * a.group;
        sink = a.sinks ? a.sinks[head] * LOG2_E : -INFINITY;
        out = a.out + (((int64_t)stream * a.n_query + query) * a.n_head_kv * a.group + head) * size_v;
    }

    // by one warp: sums of values and of weights, of which 2^above was taken off
    template <int DV>
    __device__ void store(row_values<DV> & x, float sum, const float above, const int rotation, const int lane) const {
        sum += exp2f(sink - above);
        const float factor = sum > 0 ? 1 / sum : 0;
#pragma unroll
        for (float4 & v : x) {
            v = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
        }
        rotate_row(x, rotation, lane);
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            if (VALUES_OF_LANES * k + 4 * lane < DV) {
                ((float4 *)out)[32 * k + lane] = x[k];
            }
        }
    }
};

// what parts of a column add up to
template <int DV>
struct part_sums {
    row_values<DV> x;
    float sum = 0;

    __device__ part_sums() {
#pragma unroll
        for (float4 & v : x) {
            v = make_float4(0, 0, 0, 0);
        }
    }

    __device__ void add(const float * values, const float weight, const int lane) {
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            if (VALUES_OF_LANES * k + 4 * lane < DV) {
                const float4 v = ((const float4 *)values)[32 * k + lane];
                x[k] = make_float4(x[k].x + weight * v.x, x[k].y + weight * v.y, x[k].z + weight * v.z,
                                   x[k].w + weight * v.w);
            }
        }
    }

    __device__ void put(float * values, const int lane) const {
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            if (VALUES_OF_LANES * k + 4 * lane < DV) {
                ((float4 *)values)[32 * k + lane] = x[k];
            }
        }
    }
};

// a block of threads has one column: a query of a query head
template <int DV>
__global__ void __launch_bounds__(MERGE_WARPS * LANES) merge_parts(const merge_args a) {
    __shared__ float sums[MERGE_WARPS];
    __shared__ __align__(16) float values[MERGE_WARPS][DV];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n_columns = gridDim.x, column = blockIdx.x, stream = blockIdx.y;
    const output_row row(a, DV, column, stream);
    const int64_t first = (int64_t)stream * a.n_parts * n_columns + column;

    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    float above = row.sink;  // all warps find the same
    for (int i = lane; i < a.n_parts; i += 32) {
        above = fmaxf(above, a.sums[first + (int64_t)i * n_columns].x);
    }
    above = warp_reduce_max(above);
    part_sums<DV> mine;
#pragma unroll 4
    for (int i = warp; i < a.n_parts; i += MERGE_WARPS) {
        const int64_t at = first + (int64_t)i * n_columns;
        const float2 of_part = a.sums[at];
        const float weight = exp2f(of_part.x - above);
        mine.sum += weight * of_part.y;
        mine.add(a.parts + at * DV, weight, lane);
    }
    mine.put(values[warp], lane);
    sums[warp] = mine.sum;
    __syncthreads();
    if (warp == 0) {
        part_sums<DV> all;
        for (int i = 0; i < MERGE_WARPS; ++i) {
            all.sum += sums[i];
            all.add(values[i], 1, lane);
        }
        row.template store<DV>(all.x, all.sum, above, a.rotation, lane);
    }
}

}  // namespace kvtuner::cuda
