// Launches of the kernels of attention, for each pair of head sizes: one source file instantiates each.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-runtime.cuh"

namespace kvtuner::cuda {

struct attention_launch {
    int tiles;  // of 8 columns, which a block of threads has: 1, 2 or 4
    int n_parts, n_column_groups, n_stream;
    int n_threads, shared_bytes;
    bool is_short;  // tokens are read where they are, without lots
    cudaStream_t stream;
};

// the head sizes of keys and values that have kernels, and how many tiles they take at most
#define KVTUNER_CUDA_SIZES(X) \
    X(64, 64, 4)              \
    X(96, 96, 4)              \
    X(128, 128, 4)            \
    X(192, 128, 4)            \
    X(256, 256, 2)            \
    X(512, 512, 1)

// tokens that one block of threads reads where they are, whether or not others have room for some, and at most
constexpr int BEST_OF_ONE_PART = 256, MOST_OF_ONE_PART = 512;
constexpr int MOST_IN_PLACE = 4096;  // and that several do

constexpr int FEW_PARTS = 8;  // that one warp of a merge adds up

// Warps that have the same tokens, and each so many values of them: where heads are so large that one warp has no
// registers for them. Otherwise 1.
constexpr int VALUES_OF_MEMBER = 64;

__host__ __device__ constexpr int team_warps(const int size_v) {
    return size_v >= 256 ? size_v / VALUES_OF_MEMBER : 1;
}

constexpr int TEAM_UNITS = 4;  // of 16 tokens, that a team has at once

// warps of a block of threads, of which a multiprocessor runs one: registers allow for no more
constexpr int most_warps(const int size_v, const int tiles) {
    return size_v * tiles <= 256 || team_warps(size_v) > 1 ? 16 : 8;
}

// queries are kept in registers, or in shared memory behind the lots
constexpr bool has_queries_in_registers(const int size_k, const int tiles) {
    return size_k * tiles <= 128;
}

// of 16 tokens, that a warp has at once
constexpr int most_units(const int size_k, const int size_v, const int tiles) {
    return has_queries_in_registers(size_k, tiles) && size_v * tiles <= 128 ? 2 : 1;
}

constexpr int MOST_LOTS = 6;  // in shared memory
constexpr int BARRIERS_BYTES = 2 * MOST_LOTS * BARRIER_BYTES;

// of sums of 32 values of queries of a head, for the cache and for exact rows
__host__ __device__ constexpr int sum_bytes(const int size_k, const int tiles) {
    return 2 * size_k / 32 * tiles * 4 * (int)sizeof(float4);
}

// of the scores that the warps of a team tell each other, of two lots
__host__ __device__ constexpr int team_score_bytes(const int size_v, const int tiles) {
    return team_warps(size_v) > 1 ? 2 * team_warps(size_v) * tiles * LANES * (int)sizeof(float4) : 0;
}

// floats from a row of sums in shared memory to the next: so that lanes with different columns use different banks
__host__ __device__ constexpr int row_pitch(const int size_v) {
    return size_v + 4;
}

template <int DK, int DV, int MOST_TILES>
void launch_attention(const attention_args & args, const attention_launch & launch);

}  // namespace kvtuner::cuda
