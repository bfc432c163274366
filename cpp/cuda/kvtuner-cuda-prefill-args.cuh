// What the kernels of attention of many queries are told about a node.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"

namespace kvtuner::cuda {

// A mark says what some queries, one after the other, see of some tokens: nothing, some by their masks, or all of
// whom no mask takes or adds anything.
enum class seen : uint8_t { NONE, SOME, ALL };

constexpr int SEEN_QUERIES = 16, SEEN_TOKENS = 32, SEEN_AT_ONCE = 2 * SEEN_TOKENS;

constexpr int PREFILL_WARPS = 8, PREFILL_THREADS = PREFILL_WARPS * LANES;

// marks of exact rows, as many as fill tiles of each size, and then of the cache
struct seen_marks {
    seen * marks;
    int n_exact, n;        // of a row of marks: those of exact rows, and all
    int n_rows, n_stream;  // of marks: of 16 queries each

    size_t size() const {
        return (size_t)n * n_rows * n_stream;
    }
};

struct seen_args {
    token_source cache, exact;
    const int * exact_rows;  // of each slot; negative for none
    int n_query;
    seen_marks to;
};

// rows of a tile, as they are copied into shared memory by half of the threads
struct raw_rows {
    int chunk, pitch;
    divisor by_row;  // chunks of a row
    int at_once;     // rows
};

struct raw_side {
    raw_rows k, v;
};

struct prefill_args : node_args {
    raw_side raw_cache, raw_exact;
    int raw_v_at, raw_bytes;  // of a tile as it is copied
    divisor by_group;
    seen_marks seen_by;
};

struct prefill_launch {
    int n_row_tiles, n_stream, shared_bytes;
    cudaStream_t stream;
};

}  // namespace kvtuner::cuda
