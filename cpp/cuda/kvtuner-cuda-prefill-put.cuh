// Queries and tiles of tokens as halves in shared memory.
//
// Values lie in the order in which codes have them: eight halves are 4t, 4t + 2, 4t + 1, 4t + 3 of 32 values and those
// 16 behind. Queries lie as keys do, so that products are the same.
#pragma once

#include "kvtuner-cuda-fragments.cuh"
#include "kvtuner-cuda-prefill-copy.cuh"
#include "kvtuner-cuda-products.cuh"
#include "kvtuner-cuda-rotate.cuh"

namespace kvtuner::cuda {

// Queries of a block's rows, rotated, scaled, as halves.
template <int DK, int ROWS>
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
            char * row = to + (first + k * PREFILL_WARPS) * half_pitch(DK);
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
                // the last share may have fewer
                const bool is_there = PARTS % N == 0 || share * BYTES + 16 * i < PARTS / OF_BLOCK * type::BYTES;
                *(uint4 *)(words + 4 * i) = is_there ? ((const uint4 *)from)[i] : make_uint4(0, 0, 0, 0);
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
    char * row = to + token * half_pitch(D);
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
