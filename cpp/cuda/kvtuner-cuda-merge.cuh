// The sums of all parts of a row of attention, and what its head's sink adds.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-launch.cuh"
#include "kvtuner-cuda-rotate.cuh"
#include "kvtuner-cuda-q8.cuh"

#include "ggml-cuda/common.cuh"

namespace kvtuner::cuda {

constexpr int MERGE_WARPS = 16, MERGE_FEW_WARPS = 4;

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

    // Each lane has the total of a part, of which a power of two was taken off, or none: sums them, makes the power the
    // part's weight, and gives the largest power.
    __device__ float add_totals(const float2 total, float & weight) {
        const float above = warp_reduce_max(total.x);
        weight = exp2f(total.x - above);
        sum = warp_reduce_sum(weight * total.y);
        return above;
    }

    // as many parts: the total of each and its values; gives the largest power
    template <typename TOTAL, typename VALUES>
    __device__ float add_all(const int n, const int lane, const TOTAL & total_of, const VALUES & values_of) {
        float weight;
        const float above = add_totals(lane < n ? total_of(lane) : make_float2(NO_SCORE, 0), weight);
#pragma unroll 4
        for (int i = 0; i < n; ++i) {
            add(values_of(i), __shfl_sync(0xffffffff, weight, i), lane);
        }
        return above;
    }

    __device__ void put(float * values, const int lane) const {
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            if (VALUES_OF_LANES * k + 4 * lane < DV) {
                ((float4 *)values)[32 * k + lane] = x[k];
            }
        }
    }

    // as blocks of q8_1
    __device__ void put_q8(char * blocks, const int lane, const bool is_stored) const {
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            const int at = VALUES_OF_LANES * k + 4 * lane;
            cuda::put_q8(x[k], blocks, at, is_stored && at < DV);
        }
    }
};

// where the row of a column of a stream goes, and the sink of its head
struct output_row {
    float * out;
    char * out_q8;
    float sink;

    __device__ output_row(const merge_args & a, const int size_v, const int column, const int stream) {
        int head = column, query = 0;
        if (a.n_query > 1) {
            const int of_head = a.n_query * a.group, head_kv = column / of_head, of_group = column - head_kv * of_head;
            query = of_group / a.group;
            head = head_kv * a.group + of_group - query * a.group;
        }
        sink = a.sinks ? a.sinks[head] * LOG2_E : -INFINITY;
        const int64_t first = (((int64_t)stream * a.n_query + query) * a.n_head_kv * a.group + head) * size_v;
        out = a.out + first;
        out_q8 = a.out_q8 ? a.out_q8 + first / Q8_VALUES * Q8_BYTES : nullptr;
    }

    // By one warp: sums of which 2^above was taken off. All but the store is done where it is not real.
    template <int DV>
    __device__ void store(part_sums<DV> & all, const float above, const int rotation, const int lane,
                          const bool is_real = true) const {
        const float most = fmaxf(above, sink), kept = exp2f(above - most);
        const float sum = all.sum * kept + exp2f(sink - most);
        all.scale(sum > 0 ? kept / sum : 0);
        rotate_row(all.x, rotation, lane);
        if (is_real) {
            all.put(out, lane);
        }
        if (out_q8) {
            all.put_q8(out_q8, lane, is_real);
        }
    }
};

// A warp has one column: a query of a query head. All parts come from memory at once.
template <int DV>
__global__ void __launch_bounds__(MERGE_FEW_WARPS * LANES) merge_few_parts(const merge_args a) {
    const int lane = threadIdx.x % LANES, n_columns = a.n_columns(), stream = blockIdx.y;
    const int column = blockIdx.x * MERGE_FEW_WARPS + threadIdx.x / LANES;
    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();
    if (column >= n_columns) {
        return;
    }
    const int64_t first = (int64_t)stream * a.n_parts * n_columns + column;
    const float2 total = lane < a.n_parts ? a.sums[first + lane * n_columns] : make_float2(NO_SCORE, 0);
    const float * row = a.parts + first * DV;
    row_values<DV> x[FEW_PARTS];
#pragma unroll
    for (int i = 0; i < FEW_PARTS; ++i) {
        if (i < a.n_parts) {
            get_row<DV>(x[i], row, lane);
        }
        row += n_columns * DV;
    }
    part_sums<DV> all;
    float weight;
    const float above = all.add_totals(total, weight);
#pragma unroll
    for (int i = 0; i < FEW_PARTS; ++i) {
        if (i < a.n_parts) {
            all.add(x[i], __shfl_sync(0xffffffff, weight, i));
        }
    }
    output_row(a, DV, column, stream).template store<DV>(all, above, a.rotation, lane);
}

// A block of threads has one column. Each warp adds up some parts by the largest exponent
// among them, so that it waits for memory once, and then all warps what they have.
template <int DV>
__global__ void __launch_bounds__(MERGE_WARPS * LANES) merge_parts(const merge_args a) {
    constexpr int AT_A_TIME = DV <= 128 ? 9 : DV <= 256 ? 5 : 4;
    __shared__ float2 sums[MERGE_WARPS];
    __shared__ __align__(16) float values[MERGE_WARPS][DV];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n_columns = a.n_columns(), column = blockIdx.x, stream = blockIdx.y;
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
        part_sums<DV> all;
        above = all.add_all(
                MERGE_WARPS, lane, [&](const int i) { return sums[i]; }, [&](const int i) { return values[i]; });
        row.template store<DV>(all, above, a.rotation, lane);
    }
}

template <int DV>
void launch_merge(const merge_args & args, const int n_stream, cudaStream_t stream) {
    const bool is_few = args.n_parts <= FEW_PARTS;
    const int n = args.n_columns(), n_warps = is_few ? MERGE_FEW_WARPS : MERGE_WARPS;
    const int n_blocks = is_few ? (n + MERGE_FEW_WARPS - 1) / MERGE_FEW_WARPS : n;
    const ggml_cuda_kernel_launch_params params(dim3(n_blocks, n_stream), dim3(n_warps * LANES), (size_t)0, stream);
    if (is_few) {
        ggml_cuda_kernel_launch(merge_few_parts<DV>, params, args);
    } else {
        ggml_cuda_kernel_launch(merge_parts<DV>, params, args);
    }
}

}  // namespace kvtuner::cuda
