// Products of quantized weights and some rows, as decoding of many sequences has them. Each warp copies whole steps of
// its rows of weights to shared memory, well before it multiplies them: they are the bulk of what is read, and no
// kernel writes them. A team of warps shares the step of rows that it multiplies them with. Products are of codes, in
// tensor cores; what teams, and blocks of threads that share values, have summed is added up last, in one order.
#pragma once

#include "kvtuner-cuda-thin-launch.h"
#include "kvtuner-cuda-thin-weights.cuh"
#include "kvtuner-cuda-warp.cuh"

namespace kvtuner::cuda {

struct thin_args {
    const char * weights;
    int64_t stride;  // bytes from a row of weights to the next: a multiple of 16
    thin_rows rows;
    float * out;    // [rows, rows of weights]
    float * parts;  // [blocks that share values, rows of all tiles, rows of weights], if there are several
    int * tickets;  // of blocks that share values: how many are done, 0 at first
    int n_values, n_weights, n_rows;
    int n_stages;  // steps of a team that are in shared memory
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

// A step of rows in shared memory: codes [blocks, tiles, lanes], then scales [blocks, tiles, t]. What a lane has of a
// block.
template <int TILES>
struct thin_factor {
    uint2 codes[TILES];
    float scale[TILES][2];
    int sum[TILES][2];

    __device__ thin_factor(const char * step, const int block, const int lane) {
        const uint2 * all_codes = (const uint2 *)step + block * TILES * THIN_LANES + lane;
        const thin_scales * all_scales =
                (const thin_scales *)(step + THIN_BLOCKS * TILES * THIN_LANES * sizeof(uint2)) + block * TILES * 4 +
                lane % 4;
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            codes[i] = all_codes[i * THIN_LANES];
            const thin_scales of = all_scales[i * 4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                scale[i][j] = __half2float(of.scale[j]);
                sum[i][j] = of.sum[j];
            }
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
    int c[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        c[j] = LARGE_BITS - OFFSET * rows.sum[tile][j % 2];
    }
    add_codes_product(c, codes, rows.codes[tile].x, rows.codes[tile].y);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        sums[j] += (__int_as_float(c[j]) - LARGE) * ((j < 2 ? scale.x : scale.y) * rows.scale[tile][j % 2]);
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
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sums[part][tile][j] -= scale[j / 2].y * (rows.scale[tile][j % 2] * rows.sum[tile][j % 2]);
                }
            }
        }
    }
}

// copies of a step of a warp's rows of weights, and of rows, by a team
template <ggml_type T, int PARTS>
__device__ void copy_weights(const thin_args & a, const int first, const int step, const int lane, const uint32_t to) {
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
}

template <int TILES, int UNIT>
__device__ void copy_units(const char * all, const int n_tiles, const int first_tile, const int step, const int i,
                           const uint32_t to) {
    constexpr int PIECES = TILES * UNIT / 16;  // of a block of values, next to each other
#pragma unroll
    for (int k = 0; k < (THIN_BLOCKS * PIECES + THIN_TEAM * THIN_LANES - 1) / (THIN_TEAM * THIN_LANES); ++k) {
        const int piece = k * THIN_TEAM * THIN_LANES + i, block = piece / PIECES;
        if (block < THIN_BLOCKS) {
            const int64_t tile = (int64_t)(step * THIN_BLOCKS + block) * n_tiles + first_tile;
            copy_later<16>(to + piece * 16, all + tile * UNIT + piece % PIECES * 16);
        }
    }
}

template <int TILES>
__device__ void copy_rows(const thin_rows & rows, const int first_tile, const int step, const int i,
                          const uint32_t to) {
    constexpr int CODES = THIN_LANES * (int)sizeof(uint2), SCALES = 4 * (int)sizeof(thin_scales);
    static_assert(THIN_BLOCKS * (CODES + SCALES) == THIN_TILE_BYTES);
    copy_units<TILES, CODES>((const char *)rows.codes, rows.n_tiles, first_tile, step, i, to);
    copy_units<TILES, SCALES>((const char *)rows.scales, rows.n_tiles, first_tile, step, i,
                              to + THIN_BLOCKS * TILES * CODES);
}

// in shared memory, what a team's warps have summed: [rows, rows of weights]
template <int PARTS, int TILES>
__device__ void put_sums(const thin_sums<PARTS, TILES> & sums, const int member, const int lane, float * of_team) {
    constexpr int STRIDE = THIN_BLOCK_WEIGHTS * PARTS + THIN_PADDING;
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = tile * THIN_TILE + 2 * t + j % 2;
                of_team[row * STRIDE + (member * PARTS + part) * THIN_PART + 8 * (j / 2) + g] = sums[part][tile][j];
            }
        }
    }
}

// what a block of threads has in common
template <int PARTS, int TILES>
struct thin_place {
    static constexpr int N_ROWS = TILES * THIN_TILE, N_WEIGHTS = THIN_BLOCK_WEIGHTS * PARTS;
    int first, first_row;  // of weights, and of rows

    // `use` of a row and a row of weights, that are there
    template <typename USE>
    __device__ void each(const thin_args & a, const USE & use) const {
        for (int i = threadIdx.x; i < N_ROWS * N_WEIGHTS; i += THIN_WARPS * THIN_LANES) {
            const int row = i / N_WEIGHTS, at = i % N_WEIGHTS;
            if (first + at < a.n_weights && first_row + row < a.n_rows) {
                use(row, at, (int64_t)(first_row + row) * a.n_weights + first + at);
            }
        }
    }
};

// whether all blocks of threads that share values have come here: to the last of them
inline __device__ bool are_all_there(const thin_args & a, int * told) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        int & ticket = a.tickets[blockIdx.y * gridDim.x + blockIdx.x];
        *told = atomicAdd(&ticket, 1) == (int)gridDim.z - 1;
        if (*told) {
            ticket = 0;  // for the next product
        }
    }
    __syncthreads();
    __threadfence();
    return *told;
}

template <int PARTS, int TILES>
__device__ void store_sums(const thin_args & a, const thin_place<PARTS, TILES> & place, const float * sums,
                           int * told) {
    using sizes = thin_place<PARTS, TILES>;
    constexpr int STRIDE = sizes::N_WEIGHTS + THIN_PADDING;
    const int64_t n_part = (int64_t)a.rows.n_tiles * THIN_TILE * a.n_weights;
    float * to = gridDim.z == 1 ? a.out : a.parts + blockIdx.z * n_part;
    place.each(a, [&](const int row, const int at, const int64_t i) {
        float sum = 0;
#pragma unroll
        for (int team = 0; team < THIN_TEAMS; ++team) {
            sum += sums[(team * sizes::N_ROWS + row) * STRIDE + at];
        }
        to[i] = sum;
    });
    if (gridDim.z > 1 && are_all_there(a, told)) {
        place.each(a, [&](const int, const int, const int64_t i) {
            float sum = 0;
            for (int split = 0; split < (int)gridDim.z; ++split) {
                sum += __ldcg(a.parts + split * n_part + i);
            }
            a.out[i] = sum;
        });
    }
}

// Grid: rows of weights, tiles of rows, shares of values. Steps go to teams in turn.
template <ggml_type T, int PARTS, int TILES>
__global__ void __launch_bounds__(THIN_WARPS * THIN_LANES, 2) multiply_thin(const thin_args a) {
    static_assert(THIN_TEAMS == 2);
    extern __shared__ __align__(128) char shared[];
    constexpr int WEIGHT_BYTES = THIN_PART * PARTS * thin_weights<T>::STRIDE;
    constexpr int STAGE_BYTES = THIN_TEAM * WEIGHT_BYTES + TILES * THIN_TILE_BYTES;
    const int warp = threadIdx.x / THIN_LANES, lane = threadIdx.x % THIN_LANES;
    const int team = warp / THIN_TEAM, member = warp % THIN_TEAM;
    const thin_place<PARTS, TILES> place = { (int)blockIdx.x * THIN_BLOCK_WEIGHTS * PARTS,
                                             (int)blockIdx.y * TILES * THIN_TILE };
    const int n_steps = a.n_values / THIN_STEP;
    const int begin = n_steps * blockIdx.z / gridDim.z + team, end = n_steps * (blockIdx.z + 1) / gridDim.z;
    const char * stages = shared + THIN_HEAD_BYTES + team * a.n_stages * STAGE_BYTES;
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(stages);
    const uint32_t barriers = (uint32_t)__cvta_generic_to_shared(shared + team * MOST_THIN_STAGES * 8);
    const auto bring_weights = [&](const int step, const int slot) {
        copy_weights<T, PARTS>(a, place.first + member * PARTS * THIN_PART, step, lane,
                               to + slot * STAGE_BYTES + member * WEIGHT_BYTES);
    };
    const auto bring_rows = [&](const int step, const int slot) {
        copy_rows<TILES>(a.rows, place.first_row / THIN_TILE, step, member * THIN_LANES + lane,
                         to + slot * STAGE_BYTES + THIN_TEAM * WEIGHT_BYTES);
        arrive_when_copied(barriers + 8 * slot);
    };
    ggml_cuda_pdl_lc();
    if (member == 0 && lane < a.n_stages) {
        make_barrier(barriers + 8 * lane, THIN_TEAM * THIN_LANES);
    }
    for (int i = 0; i < a.n_stages && begin + i * THIN_TEAMS < end; ++i) {
        bring_weights(begin + i * THIN_TEAMS, i);
    }
    __syncthreads();
    ggml_cuda_pdl_sync();
    for (int i = 0; i < a.n_stages && begin + i * THIN_TEAMS < end; ++i) {
        bring_rows(begin + i * THIN_TEAMS, i);
    }
    thin_sums<PARTS, TILES> sums = {};
    thin_slot slot;
    for (int step = begin; step < end; step += THIN_TEAMS, slot.next(a.n_stages)) {
        wait_for_phase(barriers + 8 * slot.at, slot.phase);
        const char * stage = stages + slot.at * STAGE_BYTES;
        const char * weights = stage + member * WEIGHT_BYTES + step * thin_weights<T>::BYTES % 16;
#pragma unroll 1
        for (int pair = 0; pair < THIN_BLOCKS; pair += 2) {  // of which one begins at a multiple of four bytes
#pragma unroll
            for (int block = pair; block < pair + 2; ++block) {
                const thin_factor<TILES> rows(stage + THIN_TEAM * WEIGHT_BYTES, block, lane);
                add_thin<T, PARTS, TILES>(weights, block, lane, rows, sums);
            }
        }
        const int next = step + a.n_stages * THIN_TEAMS;
        if (next < end) {
            wait_for_one_of_two<THIN_TEAM>(team);
            bring_weights(next, slot.at);
            bring_rows(next, slot.at);
        }
    }
    __syncthreads();  // stages are no longer read
    float * all_sums = (float *)(shared + THIN_HEAD_BYTES);
    // where the stages were
    constexpr int TEAM_SUMS = TILES * THIN_TILE * (THIN_BLOCK_WEIGHTS * PARTS + THIN_PADDING);
    static_assert(TEAM_SUMS * sizeof(float) <= STAGE_BYTES);
    put_sums<PARTS, TILES>(sums, member, lane, all_sums + team * TEAM_SUMS);
    __syncthreads();
    store_sums(a, place, all_sums, (int *)(shared + THIN_TEAMS * MOST_THIN_STAGES * 8));
}

}  // namespace kvtuner::cuda
