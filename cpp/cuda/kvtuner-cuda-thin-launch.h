// How blocks of threads of kvtuner-cuda-thin.cuh share out rows of weights, and what they have of shared memory.
#pragma once

#include <algorithm>

namespace kvtuner::cuda {

constexpr int THIN_WARPS = 8;
constexpr int THIN_PART = 16;        // rows of weights
constexpr int MOST_THIN_PARTS = 2;   // that a block of threads has
constexpr int MOST_THIN_TILES = 4;   // of 8 rows, that it has
constexpr int MOST_THIN_STAGES = 3;  // steps of a warp that are in shared memory
constexpr int THIN_BARRIER_BYTES = (THIN_WARPS * MOST_THIN_STAGES * 8 + 127) / 128 * 128;
constexpr int THIN_PADDING = 4;  // floats behind the sums of a row

constexpr int THIN_BLOCKS_AT_ONCE = 2;      // of threads, on a multiprocessor
constexpr int KEPT_OF_SHARED_BYTES = 1024;  // of each of these

// Of these rows, eight each: those that a block of threads has, and all, so many at a time.
inline int thin_tiles(const int n_rows) {
    const int n = (n_rows + 7) / 8;
    return n <= 2 ? n : MOST_THIN_TILES;
}

inline int all_thin_tiles(const int n_rows) {
    const int tiles = thin_tiles(n_rows), rows_at_once = 8 * tiles;
    return (n_rows + rows_at_once - 1) / rows_at_once * tiles;
}

// a GPU
struct thin_device {
    int n_multiprocessors, shared_bytes;  // the latter of a block of threads, at most
};

// a product, with rows of weights that are so far apart in shared memory
struct thin_shape {
    int stride, n_steps, n_weights, tiles, n_tiles;
};

struct thin_launch {
    int parts, n_stages, shared_bytes;
};

// of all warps, behind barriers: steps, and then the sums of each
inline int thin_shared_bytes(const thin_shape & s, const int parts, const int n_stages) {
    const int of_steps = n_stages * parts * THIN_PART * s.stride;
    const int of_sums = s.tiles * 8 * (parts * THIN_PART + THIN_PADDING) * (int)sizeof(float);
    return THIN_BARRIER_BYTES + THIN_WARPS * std::max(of_steps, of_sums);
}

inline int most_thin_stages(const thin_shape & s, const int parts, const int shared_bytes) {
    return (shared_bytes - THIN_BARRIER_BYTES) / (THIN_WARPS * parts * THIN_PART * s.stride);
}

// Two parts for a block of threads, if blocks are left for all multiprocessors; of stages as many as leave room for two
// blocks, if that are two at least.
inline thin_launch thin_launch_of(const thin_shape & s, const thin_device & device) {
    const int of_two_blocks = (device.shared_bytes + KEPT_OF_SHARED_BYTES) / THIN_BLOCKS_AT_ONCE - KEPT_OF_SHARED_BYTES;
    const int n_blocks = s.n_weights / (MOST_THIN_PARTS * THIN_PART) * (s.n_tiles / s.tiles);
    const bool are_enough = n_blocks >= THIN_BLOCKS_AT_ONCE * device.n_multiprocessors;
    const int parts = are_enough && most_thin_stages(s, MOST_THIN_PARTS, of_two_blocks) >= 2 ? MOST_THIN_PARTS : 1;
    const int of_two = most_thin_stages(s, parts, of_two_blocks);
    const int n = of_two >= 2 ? of_two : most_thin_stages(s, parts, device.shared_bytes);
    const int n_stages = std::min({ n, MOST_THIN_STAGES, (s.n_steps + THIN_WARPS - 1) / THIN_WARPS });
    return { parts, n_stages, thin_shared_bytes(s, parts, n_stages) };
}

}  // namespace kvtuner::cuda
