// What a block of threads asks memory for while the kernel before it still runs: since the layer before, all weights of
// a model have come through the L2 cache, and where pages lie is forgotten, too. Nothing that kernels store is read, as
// the one before may still do so.
#pragma once

#include "kvtuner-cuda-lots.cuh"

namespace kvtuner::cuda {

constexpr int LINE = 128;  // bytes that are asked for at once

// of tokens of a stream, heads next to each other: the i-th line
inline __device__ void ask_for_tokens(const cached_side & side, const int stream, const int first, const int n,
                                      const int64_t i) {
    if (side.of.head < side.of.token && i * LINE < n * side.of.token) {
        prefetch(side.data + stream * side.of.stream + first * side.of.token + i * LINE);
    }
}

// The part of a block: each thread asks for a line of keys and of values, those of the blocks of other heads for the
// next ones.
inline __device__ void ask_for_part(const attention_args & a, const lot_range & range, const int stream,
                                    const int first_head) {
    constexpr int MASKS = LINE / (int)sizeof(half);
    const int first = range.first * a.tokens_of_lot();
    const int n = min(range.last * a.tokens_of_lot(), a.cache.n_tokens) - first;
    const int i = a.by_heads.quotient(first_head) * a.n_warps() * LANES + threadIdx.x;
    ask_for_tokens(a.cache.k, stream, first, n, i);
    ask_for_tokens(a.cache.v, stream, first, n, i);
    if ((int)threadIdx.x * MASKS < n) {
        prefetch(a.cache.mask + stream * a.cache.mask_stream + first + threadIdx.x * MASKS);
    }
}

// the column that a warp takes first
template <int DK>
__device__ void ask_for_query(const attention_args & a, const int i, const int first_head, const int first_column) {
    const int of_block = a.by_columns.quotient(i), at = threadIdx.x % LANES * LINE;
    if (i < a.heads_of_block * a.by_columns.d && at < DK * (int)sizeof(float)) {
        const float4 * row = query_row(a, of_block, i - of_block * a.by_columns.d, first_head, first_column);
        if (row) {
            prefetch((const char *)row + at);
        }
    }
}

// a head's key or value of an exact row; negative for none
inline __device__ void ask_for_exact_row(const attention_args & a, const bool is_key, const int head, const int row) {
    const strides of = is_key ? a.exact.k.of : a.exact.v.of;
    const char * data = (is_key ? a.exact.k.data : a.exact.v.data) + head * of.head;
#pragma unroll 1
    for (int i = row < 0 ? (int)of.head : 0; i < (int)of.head; i += LINE) {
        prefetch(data + row * of.token + i);
    }
}

}  // namespace kvtuner::cuda
