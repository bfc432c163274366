// Rows that a product of quantized weights with few of them reads: codes of 8 bits and a scale for each 32 values, as
// in q8_1, in the order in which lanes of a warp have them as a factor of products.
#pragma once

#include "kvtuner-cuda-runtime.cuh"

#include "ggml-cuda/common.cuh"

#include <cstdint>

namespace kvtuner::cuda {

constexpr int THIN_TILE = 8;    // rows
constexpr int THIN_BLOCK = 32;  // values
constexpr int THIN_STEP = 256;  // values of a row of weights that a warp multiplies at a time
constexpr int THIN_BLOCKS = THIN_STEP / THIN_BLOCK;
constexpr int THIN_LANES = 32;

// of rows 2t and 2t + 1 of a tile, in a block of values
struct __align__(8) thin_scales {
    half scale[2];
    int16_t sum[2];  // of codes
};

struct thin_rows {
    uint2 * codes;         // [blocks, tiles, lanes]: lane 4g + t has values 4t and on, and 16 + 4t and on, of row g
    thin_scales * scales;  // [blocks, tiles, t]
    int n_tiles;
};

struct thin_rows_args {
    const float * from;
    int n_values, n_rows;  // the first a multiple of THIN_STEP
    thin_rows to;
    int * tickets;  // become 0
    int n_tickets;
};

constexpr int THIN_ROWS_THREADS = 64;  // each of four values: they have THIN_STEP of a row

inline __device__ float most_of_block(float x) {
#pragma unroll
    for (int n = THIN_BLOCK / 8; n > 0; n /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, n));
    }
    return x;
}

inline __device__ int sum_of_codes(int x) {
#pragma unroll
    for (int n = THIN_BLOCK / 8; n > 0; n /= 2) {
        x += __shfl_xor_sync(0xffffffff, x, n);
    }
    return x;
}

// Grid: steps of values, rows of all tiles. Those of no row are zeros.
__global__ void __launch_bounds__(THIN_ROWS_THREADS) quantize_thin(const thin_rows_args a) {
    ggml_cuda_pdl_lc();
    const int row = blockIdx.y, at = blockIdx.x * THIN_STEP + 4 * threadIdx.x, word = threadIdx.x % 8;
    ggml_cuda_pdl_sync();
    for (int i = threadIdx.x; i < a.n_tickets && blockIdx.x == 0 && blockIdx.y == 0; i += THIN_ROWS_THREADS) {
        a.tickets[i] = 0;
    }
    float4 v = make_float4(0, 0, 0, 0);
    if (row < a.n_rows) {
        v = *(const float4 *)(a.from + (int64_t)row * a.n_values + at);
    }
    const float scale = most_of_block(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)))) / 127.0f;
    const auto code = [=](const float x) { return (int)(scale == 0 ? 0 : roundf(x / scale)); };
    const int x = code(v.x), y = code(v.y), z = code(v.z), w = code(v.w);
    const int sum = sum_of_codes(x + y + z + w);
    const int64_t tile = (int64_t)(at / THIN_BLOCK) * a.to.n_tiles + row / THIN_TILE;
    uint2 & codes = a.to.codes[tile * THIN_LANES + row % THIN_TILE * 4 + word % 4];
    (word < 4 ? codes.x : codes.y) = (x & 0xff) | (y & 0xff) << 8 | (z & 0xff) << 16 | (unsigned)w << 24;
    if (word == 0) {
        thin_scales & scales = a.to.scales[tile * 4 + row % THIN_TILE / 2];
        scales.scale[row % 2] = __float2half_rn(scale);
        scales.sum[row % 2] = (int16_t)sum;
    }
}

}  // namespace kvtuner::cuda
