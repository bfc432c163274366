// Launches of the kernels of attention of many queries, for each pair of head sizes: one source file instantiates each.
#pragma once

#include "kvtuner-cuda-prefill-args.cuh"

namespace kvtuner::cuda {

// the head sizes of keys and values that have kernels
#define KVTUNER_CUDA_PREFILL_SIZES(X) \
    X(64, 64)                         \
    X(96, 96)                         \
    X(128, 128)                       \
    X(192, 128)                       \
    X(256, 256)

// Bytes from a row of halves in shared memory to the next: an odd number of 16, so that eight rows lie in different
// banks.
__host__ __device__ constexpr int half_pitch(const int size) {
    return 2 * size + 16;
}

// What a block of threads has in shared memory: queries, and two tiles of keys and values, all as halves, and two tiles
// as they are copied.
template <int DK, int DV>
struct prefill_sizes {
    static constexpr int ROW_TILES = DV <= 128 ? 2 : 1;  // of 16 rows, that a warp has: registers allow for no more
    static constexpr int ROWS = PREFILL_WARPS * ROW_TILES * 16;
    static constexpr int TOKENS = DK <= 128 ? 64 : 32;
    static constexpr int PITCH_K = half_pitch(DK), PITCH_V = half_pitch(DV);
    static constexpr int V_AT = TOKENS * PITCH_K, TILE_BYTES = V_AT + TOKENS * PITCH_V;
    static constexpr int TILES_AT = ROWS * PITCH_K, BARRIERS_AT = TILES_AT + 2 * TILE_BYTES;
    static constexpr int RAW_AT = BARRIERS_AT + 2 * BARRIER_BYTES;
};

void mark_seen(const seen_args & args, cudaStream_t stream);

template <int DK, int DV>
void launch_prefill(const prefill_args & args, const prefill_launch & launch);

}  // namespace kvtuner::cuda
