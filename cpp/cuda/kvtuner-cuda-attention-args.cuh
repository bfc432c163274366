// What the kernels of attention are told about a node.
#pragma once

#include "kvtuner-cuda-runtime.cuh"

#include "ggml.h"

#include <cstdint>

namespace kvtuner::cuda {

constexpr int LANES = 32;
constexpr int COLUMNS = 8;  // of a tile
constexpr int TOKENS = 16;  // that a warp has at once
constexpr int CHUNK = 16;   // bytes that one instruction copies at most
constexpr float LOG2_E = 1.44269504f;

constexpr float NO_SCORE = -1e30f;
// Weights are 2^HEADROOM where they begin, and halves; times scales of values, too.
constexpr float HEADROOM = 6, MOST_ABOVE = 8;

// bytes from a token, a KV head, a stream to the next
struct strides {
    int64_t token, head, stream;
};

// the types of caches that these kernels read, without gaps: so a jump needs no search
enum class cache_kind : int { F16, Q8_0, Q5_0, Q4_0, IQ4_NL, Q3_NL, Q2_NL };

struct cached_side {
    const char * data;
    strides of;
    cache_kind kind;
};

// Where tokens are read from: a cache, or rows that some of its tokens have as they were before they were quantized.
struct token_source {
    cached_side k, v;
    const half * mask;
    int64_t mask_query, mask_stream;  // halves from a query, a stream to the next
    const int * blocks;               // of positions, of each token of a stream; null without centers
    int64_t blocks_stream;            // integers from a stream to the next
    int n_tokens;                     // of a stream
};

// i / d is the upper half of i * reciprocal, for small numbers; 0 for d = 1
struct divisor {
    int d;
    uint32_t reciprocal;

#if defined(__CUDACC__) || defined(__HIPCC__) || defined(KVTUNER_CUDA_ON_CPU)
    __device__ int quotient(const int i) const {
        return d == 1 ? i : __umulhi(i, reciprocal);
    }
#endif
};

// Rows that go into shared memory, whole or in chunks of as many bytes as one instruction copies. Thread i has chunk i,
// if that is less than `step`, and those `step` behind: of the same place in other rows.
struct row_copy {
    int n_rows, row_bytes;
    int of_lot;         // bytes from a lot to the next, there
    int stride, pitch;  // bytes from a row to the next, there and here
    int n_chunks, step;
    divisor by_row;  // chunks of a row
    int stride_of_step, pitch_of_step;
    int chunk;  // 4, 8 or 16 bytes
};

// where tokens of a lot lie: with a gap behind every 2^shift
struct token_layout {
    int bytes, gap, shift;

    __host__ __device__ int at(const int i) const {
        return i * bytes + (i >> shift) * gap;
    }
};

constexpr int BARRIER_BYTES = 8;

// one lot of tokens in shared memory
struct lot_layout {
    row_copy k, v, mask, blocks;
    token_layout k_tokens, v_tokens;
    int key_8, value_1, value_8;  // bytes from a token's key or value to that of one or eight tokens on
    int next_key, next_value;     // and of as many as a warp has at once
    int v_at, mask_at, blocks_at, bytes;
    int copied_bytes;
    bool is_by_rows;
    int turns, carriers;  // warps take so many turns to bring a lot, as many of them together
};

// How exact rows of a stream are shared out: a warp of each head takes a unit of some slots at a time. The first parts
// take one each, then again, with the next of the head's warps.
struct exact_share {
    int n_slots, slots;  // of the stream, of a unit: 16, or fewer where shared memory has no room for more
    int n_units, n_parts, sub_warps;
};

// Where a unit of exact rows lies in shared memory: of each row the chunks that have the head's key and value, then
// what each query sees of them.
struct exact_layout {
    int at, bytes;  // of the first warp, of each
    int k_chunks, v_chunks, row_bytes, masks;
    int first_lots;  // that come before exact rows have gone
};

struct merge_args {
    float * parts;        // [values, columns, parts, streams]
    float2 * sums;        // [columns, parts, streams]: exponent of two that was taken off, sum
    const float * sinks;  // of each query head, or null
    float * out;          // [values, query heads, queries, streams]
    char * out_q8;        // the same as blocks of q8_1, or null
    int n_parts, n_query, n_head_kv, group;
    int rotation;  // values of the Walsh-Hadamard transform of a row; 0: none

    // of a stream
    __host__ __device__ int n_columns() const {
        return n_query * n_head_kv * group;
    }
};

// what a node says, for all kernels
struct node_args {
    const char * q;                     // f32
    int64_t q_query, q_head, q_stream;  // bytes
    int q_rotation;                     // as that of rows of the output
    token_source cache, exact;          // the latter of no tokens without exact rows
    const int * exact_rows;             // of each slot; negative for none
    const half * centers;               // [values of a token, blocks of positions], or null
    int64_t centers_block;              // halves
    float q_scale, cap;                 // scores are in powers of two; cap: 0 for none
    float max_bias;
    int n_query, n_head_kv, group;
    merge_args merge;

    // of a KV head: its query heads for one query, then those for the next
    __host__ __device__ int n_columns() const {
        return n_query * group;
    }
};

struct attention_args : node_args {
    const int * exact_first;                  // of each stream, its first slot; null: 0
    float offset, exact_offset;               // what raw codes of keys are more than levels
    float high_k, high_v, offset_v;           // of codes as they are read: see cached
    bool has_plain_scores;                    // one query, no cap and no bias: masks are all that is added to scores
    int heads_of_block, sub_warps, team;      // warps of a block of threads: a team of so many for each of both
    int units;                                // of 16 tokens, that a team has of a lot
    divisor by_heads, by_groups, by_columns;  // heads_of_block, head_groups(), columns_of_block()
    int n_lots, lots_ahead;                   // in shared memory at once, and of these how many before they are read
    int n_of_parts, first_of_more;            // lots of each part, and the first part that has one more
    int behind_lots;                          // where barriers lie in shared memory
    exact_share share;
    exact_layout exact_at;
    lot_layout lot;

    // of a KV head, at most
    __host__ __device__ int columns_of_block(const int tiles) const {
        return tiles * COLUMNS < n_columns() ? tiles * COLUMNS : n_columns();
    }

    __device__ int query_of(const int column) const {
        return n_query == 1 ? 0 : column / group;
    }

    __host__ __device__ int tokens_of_lot() const {
        return TOKENS * sub_warps * units;
    }

    __host__ __device__ int n_teams() const {
        return heads_of_block * sub_warps;
    }

    // that attend
    __host__ __device__ int n_warps() const {
        return n_teams() * team;
    }

    __host__ __device__ int head_groups() const {
        return n_head_kv / heads_of_block;
    }
};

}  // namespace kvtuner::cuda
