// The kernels that store rows in q2_nl and q3_nl and copy from these types: set_rows, and copies from and to f32.
#pragma once

#include "kvtuner-cuda-dequantize.cuh"
#include "kvtuner-cuda-quantize.cuh"

#include <cstdint>

namespace kvtuner::cuda {

constexpr int THREADS = 128;  // of a block of a grid

// where the values of a tensor lie
struct layout {
    int64_t ne[3];  // without the last dimension
    int64_t nb[4];  // bytes
    int block;      // values that nb[0] spans

    // bytes before the block with value i of all
    __device__ int64_t at(int64_t i) const {
        const int64_t i0 = i % ne[0];
        i /= ne[0];
        const int64_t i1 = i % ne[1];
        i /= ne[1];
        return i0 / block * nb[0] + i1 * nb[1] + i % ne[2] * nb[2] + i / ne[2] * nb[3];
    }
};

struct copy_args {
    const char * from;
    char * to;
    layout from_layout;
    layout to_layout;
    int64_t n;  // values
};

// f32 -> blocks of keys, 16 threads a block
template <typename BLOCK>
__global__ void __launch_bounds__(THREADS) copy_to_blocks(const copy_args args) {
    const int thread = threadIdx.x % TOGETHER;
    const int64_t b = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / TOGETHER;
    const bool is_stored = b < args.n / QK_NL;
    const int64_t first = is_stored ? b * QK_NL : 0;
    float x[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        x[k] = *(const float *)(args.from + args.from_layout.at(first + thread + k * TOGETHER));
    }
    quantize_together<side::K>(x, thread, is_stored, (BLOCK *)(args.to + args.to_layout.at(first)));
}

// blocks -> f32, two values a thread
template <typename BLOCK>
__global__ void __launch_bounds__(THREADS) copy_from_blocks(const copy_args args) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= args.n / 2) {
        return;
    }
    const int64_t first = i / (QK_NL / 2) * QK_NL;
    const int j = (int)(i % (QK_NL / 2));
    float2 values;
    kvtuner_dequantize<BLOCK>(args.from + args.from_layout.at(first), 0, j, values);
    *(float *)(args.to + args.to_layout.at(first + j)) = values.x;
    *(float *)(args.to + args.to_layout.at(first + j + QK_NL / 2)) = values.y;
}

struct set_rows_args {
    const char * rows;
    const char * indices;
    char * to;
    int64_t ne[4];        // of rows
    int64_t nb[4];        // of rows, bytes; nb[0] that of a float
    int64_t n_index[2];   // indices of a row's dimensions 2 and 3, which repeat
    int64_t nb_index[3];  // bytes
    int64_t nb_to[4];     // bytes
};

// 16 threads a block
template <typename BLOCK, side SIDE, typename INDEX>
__global__ void __launch_bounds__(THREADS) set_rows(const set_rows_args args) {
    const int thread = threadIdx.x % TOGETHER;
    const int64_t per_row = args.ne[0] / QK_NL;
    const int64_t place = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / TOGETHER;
    const bool is_stored = place < per_row * args.ne[1] * args.ne[2] * args.ne[3];
    const int64_t at = is_stored ? place : 0;
    const int64_t b = at % per_row, row = at / per_row;
    const int64_t i1 = row % args.ne[1], i2 = row / args.ne[1] % args.ne[2], i3 = row / args.ne[1] / args.ne[2];

    const INDEX index =
            *(const INDEX *)(args.indices + i1 * args.nb_index[0] + i2 % args.n_index[0] * args.nb_index[1] +
                             i3 % args.n_index[1] * args.nb_index[2]);
    const float * from =
            (const float *)(args.rows + i1 * args.nb[1] + i2 * args.nb[2] + i3 * args.nb[3]) + b * QK_NL + thread;
    const float x[EACH] = { from[0], from[TOGETHER], from[2 * TOGETHER], from[3 * TOGETHER] };
    BLOCK * to = (BLOCK *)(args.to + index * args.nb_to[1] + i2 * args.nb_to[2] + i3 * args.nb_to[3]) + b;
    quantize_together<SIDE>(x, thread, is_stored, to);
}

}  // namespace kvtuner::cuda
