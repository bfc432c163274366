// A root-mean-square norm with its weights, whose rows are quantized for the products behind it as they are made. What
// is stored, and in which order values are added, is as in upstream's rms_norm_f32 and quantize_q8_1.
#pragma once

#include "kvtuner-cuda-q8.cuh"

#include "ggml-cuda/common.cuh"

#include <cstdint>

namespace kvtuner::cuda {

constexpr int NORM_VALUES = 8;  // of a row, of each thread
constexpr int NORM_WARP = 32;   // as many as a block of q8_1 has values
constexpr int SHORT_NORM = 1024, MANY_NORM_THREADS = 1024, FEW_NORM_THREADS = 256;  // the last for shorter rows
constexpr int NORM_PADDING = 512;  // rows of q8_1 end with zeros up to a multiple

struct norm_args {
    const float *rows, *weights;
    float * out;
    char * q8;           // null: for no product
    int64_t row_stride;  // in values
    int n_values;
    float eps;

    __host__ __device__ int n_padded() const {
        return (n_values + NORM_PADDING - 1) / NORM_PADDING * NORM_PADDING;
    }
};

// of all threads of a block
template <int N_WARPS>
inline __device__ float sum_of_block(float sum) {
    __shared__ float of_warps[N_WARPS];
    const int warp = threadIdx.x / NORM_WARP, lane = threadIdx.x % NORM_WARP;
    sum = warp_reduce_sum(sum);
    if (lane == 0) {
        of_warps[warp] = sum;
    }
    __syncthreads();
    return warp_reduce_sum(lane < N_WARPS ? of_warps[lane] : 0.0f);
}

// by all lanes of a warp, which have a block: value `at` of a row of q8_1
inline __device__ void put_q8_value(const float x, char * row, const int at) {
    const float most = warp_reduce_max(fabsf(x)), sum = warp_reduce_sum(x), scale = most / 127.0f;
    char * block = row + at / Q8_VALUES * Q8_BYTES;
    block[4 + at % Q8_VALUES] = (char)(int8_t)(most == 0.0f ? 0 : roundf(x / scale));
    if (at % Q8_VALUES == 0) {
        *(half2 *)block = __floats2half2_rn(scale, sum);
    }
}

// A block of threads has a row. Weights are read before the kernel before this one has ended: no kernel writes them.
template <int N_THREADS>
__global__ void __launch_bounds__(N_THREADS) norm_rows(const norm_args a) {
    ggml_cuda_pdl_lc();
    const float * x = a.rows + blockIdx.x * a.row_stride;
    float values[NORM_VALUES], weights[NORM_VALUES], sum = 0;
#pragma unroll
    for (int i = 0; i < NORM_VALUES; ++i) {
        const int at = i * N_THREADS + threadIdx.x;
        weights[i] = at < a.n_values ? a.weights[at] : 0;
    }
    ggml_cuda_pdl_sync();
#pragma unroll
    for (int i = 0; i < NORM_VALUES; ++i) {
        const int at = i * N_THREADS + threadIdx.x;
        values[i] = at < a.n_values ? x[at] : 0;
    }
#pragma unroll
    for (int i = 0; i < NORM_VALUES; ++i) {
        sum += values[i] * values[i];
    }
    const float scale = rsqrtf(sum_of_block<N_THREADS / NORM_WARP>(sum) / a.n_values + a.eps);
    float * out = a.out + (int64_t)blockIdx.x * a.n_values;
    char * q8 = a.q8 ? a.q8 + (int64_t)blockIdx.x * (a.n_padded() / Q8_VALUES * Q8_BYTES) : nullptr;
#pragma unroll
    for (int i = 0; i < NORM_VALUES; ++i) {
        const int at = i * N_THREADS + threadIdx.x;
        // rounded as where it comes from memory
        const float value = at < a.n_values ? __fmul_rn(scale * values[i], weights[i]) : 0;
        if (at < a.n_values) {
            out[at] = value;
        }
        if (q8 && at < a.n_padded()) {
            put_q8_value(value, q8, at);
        }
    }
}

}  // namespace kvtuner::cuda
