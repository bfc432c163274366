// Products of quantized weights and some rows, as decoding of many sequences has them. Each warp of a block copies
// whole steps of the same rows of weights to shared memory, well before it multiplies them: they are the bulk of what
// is read, and no kernel writes them. Products are of codes, in tensor cores; what warps have summed is added up last.
#pragma once

#include "kvtuner-cuda-thin-launch.h"
#include "kvtuner-cuda-thin-weights.cuh"
#include "kvtuner-cuda-warp.cuh"

namespace kvtuner::cuda {

struct thin_args {
    const char * weights;
    int64_t stride;  // bytes from a row of weights to the next: a multiple of 16
    thin_rows rows;
    float * out;  // [rows, rows of weights]
    int n_values, n_weights, n_rows;
    int n_stages;  // steps of a warp that are in shared memory
};

// a place in a warp's ring of stages
struct thin_slot {
    int at = 0, phase = 0;

    __device__ void next(const int n_stages) {
        if (++at == n_stages) {
            at = 0;
            phase ^= 1;
        }
    }
};

// what a lane has of a block of rows
template <int TILES>
struct thin_factor {
    uint2 codes[TILES];
    thin_scales scales[TILES];

    __device__ thin_factor(const thin_rows & rows, const int block, const int first_tile, const int lane) {
        const int64_t tile = (int64_t)block * rows.n_tiles + first_tile;
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            codes[i] = rows.codes[(tile + i) * THIN_LANES + lane];
            scales[i] = rows.scales[(tile + i) * 4 + lane % 4];
        }
    }
};

// of rows of weights 16i + g and 8 more, rows 2t and 2t + 1 of each tile
template <int PARTS, int TILES>
using thin_sums = float[PARTS][TILES][4];

// Products of codes times both scales. Sums of codes begin with a number whose bits, with a small whole number added,
// are those of a float that is as much larger.
template <int OFFSET, int TILES>
__device__ void add_scaled(const uint32_t (&codes)[4], const thin_factor<TILES> & rows, const int tile,
                           const float2 scale, float (&sums)[4]) {
    constexpr int LARGE_BITS = 0x4b400000;
    constexpr float LARGE = 12582912;
    const thin_scales & of = rows.scales[tile];
    int c[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        c[j] = LARGE_BITS - OFFSET * of.sum[j % 2];
    }
    add_codes_product(c, codes, rows.codes[tile].x, rows.codes[tile].y);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        sums[j] += (__int_as_float(c[j]) - LARGE) * ((j < 2 ? scale.x : scale.y) * of.scale[j % 2]);
    }
}

// a block of values
template <ggml_type T, int PARTS, int TILES>
__device__ void add_thin(const char * step, const int block, const int lane, const thin_factor<TILES> & rows,
                         thin_sums<PARTS, TILES> & sums) {
    using type = thin_weights<T>;
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        uint32_t a[4];
        float2 scale[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const char * of_row = step + (THIN_PART * part + 8 * i + g) * type::STRIDE;
            type::codes(of_row, block, t, a[i], a[2 + i]);
            scale[i] = type::scale(of_row, block);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            if constexpr (type::SECOND == thin_second::SCALE) {
                static_assert(type::OFFSET == 0);
                const uint32_t first[4] = { a[0], a[1], 0, 0 }, last[4] = { 0, 0, a[2], a[3] };
                add_scaled<type::OFFSET>(first, rows, tile, { scale[0].x, scale[1].x }, sums[part][tile]);
                add_scaled<type::OFFSET>(last, rows, tile, { scale[0].y, scale[1].y }, sums[part][tile]);
            } else {
                add_scaled<type::OFFSET>(a, rows, tile, { scale[0].x, scale[1].x }, sums[part][tile]);
            }
            if constexpr (type::SECOND == thin_second::MINIMUM) {
                const thin_scales & of = rows.scales[tile];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sums[part][tile][j] -= scale[j / 2].y * (of.scale[j % 2] * of.sum[j % 2]);
                }
            }
        }
    }
}

// copies of a step of all rows, by a warp
template <ggml_type T, int PARTS>
__device__ void copy_thin(const thin_args & a, const int first, const int step, const int lane, const uint32_t to,
                          const uint32_t barrier) {
    using type = thin_weights<T>;
    constexpr int PIECES = type::COPIED / 16;
    const char * from = a.weights + (int64_t)step * type::BYTES / 16 * 16;
#pragma unroll
    for (int i = 0; i < (PIECES * THIN_PART * PARTS + THIN_LANES - 1) / THIN_LANES; ++i) {
        const int piece = i * THIN_LANES + lane, row = piece / PIECES, at = piece % PIECES * 16;
        if (row < THIN_PART * PARTS) {
            copy_later<16>(to + row * type::STRIDE + at, from + min(first + row, a.n_weights - 1) * a.stride + at);
        }
    }
    arrive_when_copied(barrier);
}

// what all warps have summed, of rows of weights from `first` on and rows from `first_row` on
template <int PARTS, int TILES>
__device__ void store_thin(const thin_args & a, const int first, const int first_row,
                           const thin_sums<PARTS, TILES> & sums, float * shared) {
    constexpr int N_ROWS = TILES * THIN_TILE, N_WEIGHTS = THIN_PART * PARTS;
    constexpr int STRIDE = N_WEIGHTS + THIN_PADDING;  // from a row to the next in shared memory
    const int lane = threadIdx.x % THIN_LANES, g = lane / 4, t = lane % 4;
    float * mine = shared + threadIdx.x / THIN_LANES * N_ROWS * STRIDE;
    __syncthreads();  // steps are no longer read
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = tile * THIN_TILE + 2 * t + j % 2;
                mine[row * STRIDE + THIN_PART * part + 8 * (j / 2) + g] = sums[part][tile][j];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < N_ROWS * N_WEIGHTS; i += THIN_WARPS * THIN_LANES) {
        const int row = i / N_WEIGHTS, at = i % N_WEIGHTS;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < THIN_WARPS; ++warp) {
            sum += shared[(warp * N_ROWS + row) * STRIDE + at];
        }
        if (first + at < a.n_weights && first_row + row < a.n_rows) {
            a.out[(int64_t)(first_row + row) * a.n_weights + first + at] = sum;
        }
    }
}

// Grid: parts of rows of weights, tiles of rows. Steps of a row go to warps in turn.
template <ggml_type T, int PARTS, int TILES>
__global__ void __launch_bounds__(THIN_WARPS * THIN_LANES, 2) multiply_thin(const thin_args a) {
    extern __shared__ __align__(128) char shared[];
    const int warp = threadIdx.x / THIN_LANES, lane = threadIdx.x % THIN_LANES;
    const int first = blockIdx.x * THIN_PART * PARTS, first_tile = blockIdx.y * TILES, n_steps = a.n_values / THIN_STEP;
    constexpr int STEP_BYTES = THIN_PART * PARTS * thin_weights<T>::STRIDE;
    const char * steps = shared + THIN_BARRIER_BYTES + warp * a.n_stages * STEP_BYTES;
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(steps);
    const uint32_t barriers = (uint32_t)__cvta_generic_to_shared(shared + warp * MOST_THIN_STAGES * 8);
    const auto copy = [&](const int step, const int slot) {
        if (step < n_steps) {
            copy_thin<T, PARTS>(a, first, step, lane, to + slot * STEP_BYTES, barriers + 8 * slot);
        }
    };
    ggml_cuda_pdl_lc();
    if (lane < a.n_stages) {
        make_barrier(barriers + 8 * lane, THIN_LANES);
    }
    __syncwarp();
    for (int i = 0; i < a.n_stages; ++i) {
        copy(warp + i * THIN_WARPS, i);
    }
    ggml_cuda_pdl_sync();
    thin_sums<PARTS, TILES> sums = {};
    thin_slot slot;
    constexpr int BLOCKS = THIN_STEP / THIN_BLOCK;
    thin_factor<TILES> rows(a.rows, min(warp, n_steps - 1) * BLOCKS, first_tile, lane);
    for (int step = warp; step < n_steps; step += THIN_WARPS, slot.next(a.n_stages)) {
        wait_for_phase(barriers + 8 * slot.at, slot.phase);
        const char * here = steps + slot.at * STEP_BYTES + step * thin_weights<T>::BYTES % 16;
#pragma unroll 1
        for (int pair = 0; pair < BLOCKS; pair += 2) {  // of which one begins at a multiple of four bytes
#pragma unroll
            for (int block = pair; block < pair + 2; ++block) {
                const int next = block + 1 < BLOCKS ? step : min(step + THIN_WARPS, n_steps - 1);
                const thin_factor<TILES> ahead(a.rows, next * BLOCKS + (block + 1) % BLOCKS, first_tile, lane);
                add_thin<T, PARTS, TILES>(here, block, lane, rows, sums);
                rows = ahead;
            }
        }
        __syncwarp();
        copy(step + a.n_stages * THIN_WARPS, slot.at);
    }
    store_thin<PARTS, TILES>(a, first, first_tile * THIN_TILE, sums, (float *)(shared + THIN_BARRIER_BYTES));
}

}  // namespace kvtuner::cuda
