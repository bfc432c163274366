// Tiles of tokens that come into shared memory as they are.
#pragma once

#include "kvtuner-cuda-prefill-walk.cuh"
#include "kvtuner-cuda-warp.cuh"

namespace kvtuner::cuda {

// One side of each tile is brought, and put as halves, by half of the warps: one of them on each processor of a
// multiprocessor.
struct side_share {
    bool is_key;
    int i;  // of the threads that have this side

    __device__ explicit side_share(const prefill_place & at)
        : is_key((at.warp / 2 + at.warp / 4) % 2 == 0), i((at.warp % 2 + at.warp / 4 * 2) * LANES + at.lane) {
    }
};

// what a thread copies of each tile
struct side_copy {
    const char * from;  // of the first row, or of tile 0
    int stride, chunk;
    int token, at_once;  // the first of a tile, and how many tokens on the next
    uint32_t to;
    int pitch;

    __device__ side_copy(const prefill_args & a, const prefill_place & at, const side_share & mine,
                         const token_source & source, const raw_side & raw) {
        const raw_rows & as = mine.is_key ? raw.k : raw.v;
        const cached_side & side = mine.is_key ? source.k : source.v;
        const int row = as.by_row.quotient(mine.i), byte = (mine.i - row * as.by_row.d) * as.chunk;
        from = side.data + at.head * side.of.head + at.stream * side.of.stream + byte;
        stride = (int)side.of.token;
        chunk = as.chunk;
        token = row < as.at_once ? row : SEEN_AT_ONCE;
        at_once = as.at_once;
        pitch = as.pitch;
        to = (mine.is_key ? 0 : a.raw_v_at) + byte + row * pitch;
    }
};

// `n` tokens from the first on, one after the other
template <int N>
__device__ void copy_tokens(const side_copy & c, const int first, const int n, uint32_t to) {
    const char * from = c.from + (int64_t)(first + c.token) * c.stride;
#pragma unroll 1
    for (int i = c.token; i < n; i += c.at_once) {
        copy_later<N>(to, from);
        to += c.at_once * c.pitch;
        from += c.at_once * c.stride;
    }
}

// those of which these are the rows, negative for none
template <int N>
__device__ void copy_some(const side_copy & c, const int * rows, const int n, uint32_t to) {
#pragma unroll 1
    for (int i = c.token; i < n; i += c.at_once) {
        if (rows[i] >= 0) {
            copy_later<N>(to, c.from + (int64_t)rows[i] * c.stride);
        }
        to += c.at_once * c.pitch;
    }
}

// `copy` with the bytes of a chunk
#define KVTUNER_FOR_CHUNK(chunk, copy) \
    if (chunk == 16) {                 \
        copy(16);                      \
    } else if (chunk == 8) {           \
        copy(8);                       \
    } else {                           \
        copy(4);                       \
    }

}  // namespace kvtuner::cuda
