// What comes into shared memory for many queries: queries as halves, and tiles of tokens, which are copied as they are
// and become halves there.
//
// Values lie in the order in which codes have them: eight halves are 4t, 4t + 2, 4t + 1, 4t + 3 of 32 values and those
// 16 behind. Queries lie as keys do, so that products are the same.
#pragma once

#include "kvtuner-cuda-fragments.cuh"
#include "kvtuner-cuda-prefill-sizes.cuh"
#include "kvtuner-cuda-products.cuh"
#include "kvtuner-cuda-rotate.cuh"

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
#pragma unroll 1
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

// Queries of a block's rows, rotated, scaled, as halves.
template <int DK, int ROWS, int PITCH>
__device__ void put_rows(const prefill_args & a, const prefill_place & at, char * to) {
    constexpr int AT_A_TIME = 4;
#pragma unroll 1
    for (int first = at.warp; first < ROWS; first += AT_A_TIME * PREFILL_WARPS) {
        row_values<DK> x[AT_A_TIME];
#pragma unroll
        for (int k = 0; k < AT_A_TIME; ++k) {
            const int row = at.first_row + first + k * PREFILL_WARPS;
            const int query = a.by_group.quotient(row), head = at.head * a.group + row - query * a.group;
            const float4 * from = (const float4 *)(a.q + query * a.q_query + head * a.q_head + at.stream * a.q_stream);
#pragma unroll
            for (int part = 0; part < (int)(sizeof(x[k]) / sizeof(float4)); ++part) {
                const bool is_there = row < a.n_columns() && VALUES_OF_LANES * part + 4 * at.lane < DK;
                x[k][part] = is_there ? from[LANES * part + at.lane] : make_float4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (int k = 0; k < AT_A_TIME; ++k) {
            rotate_row(x[k], a.q_rotation, at.lane);
            char * row = to + (first + k * PREFILL_WARPS) * PITCH;
#pragma unroll
            for (int part = 0; part < (int)(sizeof(x[k]) / sizeof(float4)); ++part) {
                if (VALUES_OF_LANES * part + 4 * at.lane < DK) {
                    const float4 v = x[k][part];
                    const int of_32 = 4 * part + at.lane / 8, t = at.lane % 4, is_behind = at.lane / 4 % 2;
                    *(uint2 *)(row + (4 * of_32 + t) * 16 + is_behind * 8) = make_uint2(
                            pair_of(v.x * a.q_scale, v.z * a.q_scale), pair_of(v.y * a.q_scale, v.w * a.q_scale));
                }
            }
        }
    }
}

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

// The share of a row that one of `SHARES` threads has: so many times 32 values, of whole blocks, as words. Rows begin
// at a word, shares of some types in the middle of one.
template <ggml_type T, int D, int SHARES>
struct row_share {
    using type = cached<T>;
    static constexpr int PARTS = D / AT_ONCE, OF_BLOCK = type::SIZE / AT_ONCE;
    static constexpr int N = (PARTS + SHARES * OF_BLOCK - 1) / (SHARES * OF_BLOCK) * OF_BLOCK;
    static constexpr int BYTES = N / OF_BLOCK * type::BYTES, WORDS = (BYTES + 3) / 4;
    uint32_t words[WORDS];

    // all before any is stored, so that they are asked for at once
    __device__ row_share(const char * row, const int share) {
        const char * from = row + share * BYTES;
        if constexpr (BYTES % 16 == 0) {
#pragma unroll
            for (int i = 0; i < WORDS / 4; ++i) {
                *(uint4 *)(words + 4 * i) = ((const uint4 *)from)[i];
            }
        } else if constexpr (BYTES % 4 == 0) {
#pragma unroll
            for (int i = 0; i < WORDS; ++i) {
                words[i] = ((const uint32_t *)from)[i];
            }
        } else {
            const int behind = share % 2 * 2;
            uint32_t next = *(const uint32_t *)(from - behind);
#pragma unroll
            for (int i = 0; i < WORDS; ++i) {
                const uint32_t here = next;
                // the last has but half a word
                next = i + 1 < WORDS ? *(const uint32_t *)(from - behind + 4 * (i + 1)) : 0;
                words[i] = bytes_of(here, next, behind == 0 ? 0x3210 : 0x5432);
            }
        }
    }

    __device__ pair scale(const int i) const {
        return type::HAS_SCALE ? load_16((const char *)words + i / OF_BLOCK * type::BYTES) * 0x10001u : 0x3c003c00;
    }
};

template <ggml_type T, int D, int SHARES, bool HAS_CENTER>
__device__ void put_share(const char * raw, const int share, const half * center, char * to) {
    using row = row_share<T, D, SHARES>;
    if (row::N * SHARES > row::PARTS && share * row::N >= row::PARTS) {
        return;
    }
    const row mine(raw, share);
    to += share * row::N * AT_ONCE * (int)sizeof(half);
#pragma unroll
    for (int i = 0; i < row::N; ++i) {
        if (row::PARTS % row::N != 0 && share * row::N + i >= row::PARTS) {
            return;
        }
        const pair scale = mine.scale(i);
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            pair x[4];
            key_part<T, true, form::EXACT>((const char *)mine.words, i, t, x);
            if constexpr (HAS_CENTER) {
                pair more[4];
                key_part<GGML_TYPE_F16, true, form::EXACT>((const char *)(center + share * row::N * AT_ONCE), i, t,
                                                           more);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    x[k] = as_pair(__hfma2(as_half2(x[k]), as_half2(scale), as_half2(more[k])));
                }
            } else if constexpr (cached<T>::HAS_SCALE) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    x[k] = times(x[k], scale);
                }
            }
            *(uint4 *)(to + (4 * i + t) * 16) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

// Tokens that are not there are zeros.
template <int D, int TOKENS, bool HAS_CENTER>
__device__ void put_side(const cached_side & side, const char * raw, const int pitch, const int i, const bool is_there,
                         const half * center, char * to) {
    constexpr int SHARES = PREFILL_THREADS / 2 / TOKENS;
    const int token = i % TOKENS, share = i / TOKENS;
    char * row = to + token * (2 * D + 16);
    if (!is_there) {
        for (int k = share; k < D / 8; k += SHARES) {
            *(uint4 *)(row + k * 16) = make_uint4(0, 0, 0, 0);
        }
        return;
    }
#define KVTUNER_PUT(T)                                                                \
    if constexpr (D % cached<T>::SIZE == 0) {                                         \
        put_share<T, D, SHARES, HAS_CENTER>(raw + token * pitch, share, center, row); \
    }
    KVTUNER_FOR_KIND(side.kind, KVTUNER_PUT)
#undef KVTUNER_PUT
}

template <int DK, int DV>
__device__ void put_tile(const prefill_args & a, const prefill_place & at, const side_share & mine,
                         const tile_tokens & tokens, const char * raw, char * to) {
    using sizes = prefill_sizes<DK, DV>;
    const int token = mine.i % sizes::TOKENS;
    const bool is_there = tokens.row(token) >= 0;
    if (!mine.is_key) {
        put_side<DV, sizes::TOKENS, false>(tokens.from.v, raw + a.raw_v_at, tokens.raw.v.pitch, mine.i, is_there,
                                           nullptr, to + sizes::V_AT);
    } else if (a.centers) {
        const int * blocks = tokens.from.blocks + at.stream * tokens.from.blocks_stream + tokens.first;
        const int block = is_there ? blocks[token] : 0;
        put_side<DK, sizes::TOKENS, true>(tokens.from.k, raw, tokens.raw.k.pitch, mine.i, is_there,
                                          a.centers + block * a.centers_block + at.head * DK, to);
    } else {
        put_side<DK, sizes::TOKENS, false>(tokens.from.k, raw, tokens.raw.k.pitch, mine.i, is_there, nullptr, to);
    }
}

}  // namespace kvtuner::cuda
