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

template <int DV>
__device__ void get_row(row_values<DV> & x, const float * values, const int lane) {
#pragma unroll
    for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
        x[k] = VALUES_OF_LANES * k + 4 * lane < DV ? ((const float4 *)values)[32 * k + lane] : make_float4(0, 0, 0, 0);
    }
}

// what parts of a column add up to
template <int DV>
struct part_sums {
    row_values<DV> x;
    float sum = 0;

    __device__ part_sums() {
        scale(0, true);
    }

    __device__ void scale(const float factor, const bool is_empty = false) {
        sum = is_empty ? 0 : sum * factor;
#pragma unroll
        for (float4 & v : x) {
            v = is_empty ? make_float4(0, 0, 0, 0)
                         : make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
        }
    }

    __device__ void add(const row_values<DV> & values, const float weight) {
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            const float4 v = values[k];
            x[k] = make_float4(x[k].x + weight * v.x, x[k].y + weight * v.y, x[k].z + weight * v.z,
                               x[k].w + weight * v.w);
        }
    }

    __device__ void add(const float * values, const float weight, const int lane) {
        row_values<DV> v;
        get_row<DV>(v, values, lane);
        add(v, weight);
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

// A block of threads has one column: a query of a query head. Each warp adds up some parts by the largest exponent
// among them, so that it waits for memory once, and then all warps what they have.
template <int DV>
__global__ void __launch_bounds__(MERGE_WARPS * LANES) merge_parts(const merge_args a) {
    constexpr int AT_A_TIME = DV <= 128 ? 12 : DV <= 256 ? 6 : 3;
    __shared__ float2 sums[MERGE_WARPS];
    __shared__ __align__(16) float values[MERGE_WARPS][DV];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n_columns = gridDim.x, column = blockIdx.x, stream = blockIdx.y;
    const output_row row(a, DV, column, stream);
    const int64_t first = (int64_t)stream * a.n_parts * n_columns + column;

    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    float above = NO_SCORE;
    part_sums<DV> mine;
#pragma unroll 1
    for (int begin = warp; begin < a.n_parts; begin += AT_A_TIME * MERGE_WARPS) {
        float2 totals[AT_A_TIME];
        row_values<DV> x[AT_A_TIME];
        float most = above;
#pragma unroll
        for (int k = 0; k < AT_A_TIME; ++k) {
            const int part = begin + k * MERGE_WARPS;
            const int64_t at = first + (int64_t)part * n_columns;
            totals[k] = part < a.n_parts ? a.sums[at] : make_float2(NO_SCORE, 0);
            if (part < a.n_parts) {
                get_row<DV>(x[k], a.parts + at * DV, lane);
            }
        }
#pragma unroll
        for (int k = 0; k < AT_A_TIME; ++k) {
            most = fmaxf(most, totals[k].x);
        }
        mine.scale(exp2f(above - most));
        above = most;
#pragma unroll
        for (int k = 0; k < AT_A_TIME; ++k) {
            if (begin + k * MERGE_WARPS < a.n_parts) {
                const float weight = exp2f(totals[k].x - above);
                mine.sum += weight * totals[k].y;
                mine.add(x[k], weight);
            }
        }
    }
    mine.put(values[warp], lane);
    sums[warp] = make_float2(above, mine.sum);
    __syncthreads();
    if (warp == 0) {
        const float2 total = lane < MERGE_WARPS ? sums[lane] : make_float2(NO_SCORE, 0);
        above = warp_reduce_max(fmaxf(total.x, row.sink));
        const float weight = exp2f(total.x - above);
        part_sums<DV> all;
        all.sum = warp_reduce_sum(weight * total.y);
#pragma unroll 8
        for (int i = 0; i < MERGE_WARPS; ++i) {
            all.add(values[i], __shfl_sync(0xffffffff, weight, i), lane);
        }
        row.template store<DV>(all.x, all.sum, above, a.rotation, lane);
    }
}

}  // namespace kvtuner::cuda
