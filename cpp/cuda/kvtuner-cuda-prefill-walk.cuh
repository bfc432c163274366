// Which tiles of tokens a block of threads has, and where their tokens come from.
#pragma once

#include "kvtuner-cuda-prefill-sizes.cuh"
#include "kvtuner-cuda-runtime.cuh"

namespace kvtuner::cuda {

// what of the problem a block of threads has
struct prefill_place {
    int lane, warp, first_row, head, stream, part;

    __device__ prefill_place(const prefill_args & a, const int rows_of_block)
        : lane(threadIdx.x % LANES),
          warp(__shfl_sync(0xffffffff, threadIdx.x / LANES, 0)),
          first_row(blockIdx.x * rows_of_block),
          head(blockIdx.y),
          stream(blockIdx.z / a.merge.n_parts),
          part(blockIdx.z - stream * a.merge.n_parts) {
    }
};

// one of all tiles of exact rows and, behind them, the cache; negative: none
struct tile_number {
    int i;
    bool is_masked;  // whether masks are to be read

    __device__ bool is_there() const {
        return i >= 0;
    }
};

constexpr tile_number NO_TILE = { -1, false };

// The tiles of a block of threads of which its queries see something, one after the other: every n_parts-th is one of
// its own.
struct tile_walk {
    const seen * marks;
    int n_rows_of_marks, row_of_marks, of_tile;
    int first, step, n;          // of its own tiles
    int base = -LANES;           // of the tiles below, the first
    uint32_t left = 0, all = 0;  // which of them are seen, and of which all is

    __device__ tile_walk(const prefill_args & a, const prefill_place & at, const int rows_of_block, const int tokens)
        : row_of_marks(a.seen_by.n), of_tile(tokens / SEEN_TOKENS), first(at.part), step(a.merge.n_parts) {
        const int last_row = min(at.first_row + rows_of_block, a.n_columns()) - 1;
        const int first_mark = a.by_group.quotient(at.first_row) / SEEN_QUERIES;
        n_rows_of_marks = a.by_group.quotient(last_row) / SEEN_QUERIES - first_mark + 1;
        marks = a.seen_by.marks + ((int64_t)at.stream * a.seen_by.n_rows + first_mark) * row_of_marks;
        n = (a.seen_by.n / of_tile - first + step - 1) / step;
    }

    // by all lanes of a warp; none behind the last
    __device__ tile_number next(const int lane) {
        while (left == 0) {
            base += LANES;
            if (base >= n) {
                return NO_TILE;
            }
            look(lane);
        }
        const int i = __ffs(left) - 1;
        left &= left - 1;
        return { first + (base + i) * step, (all >> i & 1) == 0 };
    }

private:
    __device__ void look(const int lane) {
        bool is_seen = false, is_all = true;
        if (base + lane < n) {
            const seen * here = marks + (first + (base + lane) * step) * of_tile;
#pragma unroll 4
            for (int row = 0; row < n_rows_of_marks; ++row) {
#pragma unroll 1
                for (int k = 0; k < of_tile; ++k) {
                    const seen mark = here[row * row_of_marks + k];
                    is_seen |= mark != seen::NONE;
                    is_all &= mark == seen::ALL;
                }
            }
        }
        left = __ballot_sync(0xffffffff, is_seen);
        all = __ballot_sync(0xffffffff, is_all);
    }
};

// where a token of a tile comes from
struct tile_tokens {
    const token_source & from;
    const raw_side & raw;
    const int * rows;  // of the tile's tokens, or null
    int first, n;      // of the source; of the tile

    __device__ tile_tokens(const prefill_args & a, const tile_number tile, const int tokens)
        : tile_tokens(a, tile.i, a.seen_by.n_exact * SEEN_TOKENS / tokens, tokens) {
    }

    // negative for none
    __device__ int row(const int token) const {
        return token >= n ? -1 : rows ? rows[token] : first + token;
    }

private:
    __device__ tile_tokens(const prefill_args & a, const int tile, const int n_exact, const int tokens)
        : from(tile < n_exact ? a.exact : a.cache),
          raw(tile < n_exact ? a.raw_exact : a.raw_cache),
          rows(nullptr),
          first((tile < n_exact ? tile : tile - n_exact) * tokens),
          n(min(tokens, from.n_tokens - first)) {
        if (tile < n_exact) {
            rows = a.exact_rows + first;
        }
    }
};

}  // namespace kvtuner::cuda
