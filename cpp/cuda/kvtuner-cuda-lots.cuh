// What comes into shared memory: queries, and lots of tokens.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-products.cuh"
#include "kvtuner-cuda-rotate.cuh"

namespace kvtuner::cuda {

// which lots a block of threads takes: first exact rows, then the cache
struct lot_range {
    int exact_first, exact_last, first, last;

    __device__ lot_range(const attention_args & a) {
        const int n_lots = a.cache.n_tokens / a.tokens_of_lot();
        const int exact = a.n_exact_lots * a.exact_weight, all = exact + n_lots;
        const int begin = (int)((unsigned)all * blockIdx.x / gridDim.x);
        const int end = (int)((unsigned)all * (blockIdx.x + 1) / gridDim.x);
        exact_first = min(a.n_exact_lots, (begin + a.exact_weight - 1) / a.exact_weight);
        exact_last = min(a.n_exact_lots, (end + a.exact_weight - 1) / a.exact_weight);
        first = max(0, begin - exact);
        last = max(0, end - exact);
    }
};

// Queries of all heads of the block, rotated, as halves: a warp takes a column.
template <int DK, int TILES>
__device__ void put_queries(const attention_args & a, uint2 * to, const int first_head, const int first_column) {
    constexpr int STEPS = DK / 16;
    const int lane = threadIdx.x % LANES, n_columns = TILES * COLUMNS, n = a.heads_of_block * n_columns;
#pragma unroll 1
    for (int i = threadIdx.x / LANES; i < n; i += blockDim.x / LANES) {
        const int of_block = i / n_columns, tile = i % n_columns / COLUMNS, g = i % COLUMNS;
        const int column = first_column + i % n_columns;
        row_values<DK> x;
        if (column < a.n_columns()) {
            const int query = a.query_of(column), head = (first_head + of_block) * a.group + column - query * a.group;
            const char * q = a.q + query * a.q_query + head * a.q_head + blockIdx.z * a.q_stream;
#pragma unroll
            for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
                x[k] = make_float4(0, 0, 0, 0);
                if (VALUES_OF_LANES * k + 4 * lane < DK) {
                    x[k] = ((const float4 *)q)[LANES * k + lane];
                }
            }
            rotate_row(x, a.q_rotation, lane);
        }
#pragma unroll
        for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
            const int step = 8 * k + lane / 4;
            const bool is_one = column < a.n_columns();
            if (step < STEPS) {
                to[((of_block * STEPS + step) * TILES + tile) * LANES + g * 4 + lane % 4] =
                        is_one ? make_uint2(pair_of(x[k].x * a.q_scale, x[k].z * a.q_scale),
                                            pair_of(x[k].y * a.q_scale, x[k].w * a.q_scale))
                               : make_uint2(0, 0);
            }
        }
    }
}

// what the offsets of codes come to, of 32 values of each column of a head, by one warp: products with ones
template <int DK, int TILES>
__device__ void put_sums(const attention_args & a, const uint2 * queries, float4 * to, const int lane) {
    constexpr int PARTS = DK / AT_ONCE;
    constexpr pair ONES = 0x3c003c00;
#pragma unroll 1  // here and below: at short contexts the time to load instructions counts
    for (int i = 0; i < PARTS * TILES; ++i) {
        float c[4] = {};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const uint2 x = queries[((2 * (i / TILES) + k) * TILES + i % TILES) * LANES + lane];
            add_product(c, ONES, ONES, ONES, ONES, x.x, x.y);
        }
        if (lane < 4) {
            const float unit = -a.offset / RAW_UNIT, exact_unit = -a.exact_offset / RAW_UNIT;
            to[i * 4 + lane] = make_float4(c[0] * unit, c[1] * unit, c[0] * unit, c[1] * unit);
            to[(PARTS * TILES + i) * 4 + lane] =
                    make_float4(c[0] * exact_unit, c[1] * exact_unit, c[0] * exact_unit, c[1] * exact_unit);
        }
    }
}

// brings lots of tokens into shared memory
struct lot_copies {
    const char *k, *v, *mask, *blocks;  // of token 0
    const uint32_t shared;              // of the first lot

    template <int N>
    static __device__ void copy_chunks(const uint32_t to, const char * from, const row_copy & rows) {
#pragma unroll 1
        for (int i = threadIdx.x; i < rows.n_chunks; i += blockDim.x) {
            const int row = __umulhi(i, rows.reciprocal), chunk = i - row * rows.of_row;
            copy_later<N>(to + row * rows.pitch + chunk * N, from + row * rows.stride + chunk * N);
        }
    }

    static __device__ void copy(const uint32_t to, const char * from, const row_copy & rows) {
        if (rows.chunk == 16) {
            copy_chunks<16>(to, from, rows);
        } else if (rows.chunk == 8) {
            copy_chunks<8>(to, from, rows);
        } else {
            copy_chunks<4>(to, from, rows);
        }
    }

    // by all threads; behind the last lot, of nothing
    __device__ void ask_for(const attention_args & a, const int lot, const int last, const int place) const {
        if (lot < last) {
            const uint32_t to = shared + place * a.lot.bytes;
            const int64_t token = (int64_t)lot * a.tokens_of_lot();
            copy(to, k + token * a.cache.k.of.token, a.lot.k);
            copy(to + a.lot.v_at, v + token * a.cache.v.of.token, a.lot.v);
            copy_chunks<16>(to + a.lot.mask_at, mask + token * 2, a.lot.mask);
            copy(to + a.lot.blocks_at, blocks + token * 4, a.lot.blocks);
        }
        end_lot();
    }
};

}  // namespace kvtuner::cuda
