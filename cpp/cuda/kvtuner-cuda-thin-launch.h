// How blocks of threads of kvtuner-cuda-thin.cuh share out rows of weights, and what they have of shared memory.
#pragma once

#include <algorithm>

namespace kvtuner::cuda {

constexpr int THIN_TEAMS = 2;  // of warps in a block of threads, which have other values
constexpr int THIN_TEAM = 4;   // warps, which have the same values of other rows of weights
constexpr int THIN_WARPS = THIN_TEAMS * THIN_TEAM;
constexpr int THIN_PART = 16;          // rows of weights
constexpr int MOST_THIN_PARTS = 2;     // that a warp has
constexpr int MOST_THIN_TILES = 4;     // of 8 rows, that a block of threads has
constexpr int MOST_THIN_STAGES = 3;    // steps of a team that are in shared memory
constexpr int MOST_THIN_SPLITS = 8;    // blocks of threads that share the values of the same rows
constexpr int THIN_HEAD_BYTES = 128;   // in front: barriers, and what a block of threads tells all of its threads
constexpr int THIN_TILE_BYTES = 2304;  // of a tile of rows, a step of them
constexpr int THIN_PADDING = 4;        // floats behind the sums of a row

// bytes between rows of weights, beyond which two parts leave no room for two blocks of threads on any GPU
constexpr int MOST_STRIDE_OF_PARTS = 176;

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
    int parts, n_splits, n_stages, shared_bytes;
};

constexpr int THIN_BLOCK_WEIGHTS = THIN_TEAM * THIN_PART;  // rows of weights of a block of threads, times parts

inline int thin_blocks(const thin_shape & s, const int parts) {
    return (s.n_weights + THIN_BLOCK_WEIGHTS * parts - 1) / (THIN_BLOCK_WEIGHTS * parts);
}

inline int thin_stage_bytes(const thin_shape & s, const int parts) {
    return THIN_BLOCK_WEIGHTS * parts * s.stride + s.tiles * THIN_TILE_BYTES;
}

inline int most_thin_stages(const thin_shape & s, const int parts, const int shared_bytes) {
    return (shared_bytes - THIN_HEAD_BYTES) / (THIN_TEAMS * thin_stage_bytes(s, parts));
}

// Two parts for a warp, if blocks are left for all multiprocessors. Blocks share values, if there would be fewer than
// two for each. Of stages as many as leave room for two blocks, if that are two at least. How values are shared does
// not depend on how many rows there are, so that sums of a row do not.
inline thin_launch thin_launch_of(const thin_shape & s, const thin_device & device) {
    const int of_two_blocks = (device.shared_bytes + KEPT_OF_SHARED_BYTES) / THIN_BLOCKS_AT_ONCE - KEPT_OF_SHARED_BYTES;
    const bool are_enough =
            s.stride <= MOST_STRIDE_OF_PARTS && thin_blocks(s, MOST_THIN_PARTS) >= device.n_multiprocessors;
    const int parts = are_enough && most_thin_stages(s, MOST_THIN_PARTS, of_two_blocks) >= 2 ? MOST_THIN_PARTS : 1;
    const int n_wanted = THIN_BLOCKS_AT_ONCE * device.n_multiprocessors / thin_blocks(s, 1);
    const int n_splits = std::max(1, std::min({ n_wanted, MOST_THIN_SPLITS, s.n_steps / THIN_TEAMS }));
    const int of_two = most_thin_stages(s, parts, of_two_blocks);
    const int n = of_two >= 2 ? of_two : most_thin_stages(s, parts, device.shared_bytes);
    const int of_team = (s.n_steps + n_splits * THIN_TEAMS - 1) / (n_splits * THIN_TEAMS);
    const int n_stages = std::min({ n, MOST_THIN_STAGES, of_team });
    return { parts, n_splits, n_stages, THIN_HEAD_BYTES + THIN_TEAMS * n_stages * thin_stage_bytes(s, parts) };
}

}  // namespace kvtuner::cuda
