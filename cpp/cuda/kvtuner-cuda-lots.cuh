// What comes into shared memory: queries, and lots of tokens.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-products.cuh"
#include "kvtuner-cuda-rotate.cuh"

namespace kvtuner::cuda {

// which lots a block of threads takes
struct lot_range {
    int first, last;

    __device__ lot_range(const attention_args & a) {
        const int i = blockIdx.x, n_more = i - a.first_of_more;
        first = i * a.n_of_parts + max(0, n_more);
        last = first + a.n_of_parts + (n_more >= 0 ? 1 : 0);
    }
};

// a column of a head of the block, or null
inline __device__ const float4 * query_row(const attention_args & a, const int of_block, const int column,
                                           const int first_head, const int first_column) {
    const int of_all = first_column + column;
    if (of_all >= a.n_columns()) {
        return nullptr;
    }
    const int query = a.query_of(of_all);
    const int head = (first_head + of_block) * a.group + of_all - query * a.group;
    return (const float4 *)(a.q + query * a.q_query + head * a.q_head + blockIdx.z * a.q_stream);
}

// At short contexts the time to load instructions counts: loops here and below are not unrolled.

// zeros in place of the queries of a block that has fewer columns than its tiles
template <int DK, int TILES>
__device__ void clear_queries(const attention_args & a, uint2 * to) {
    if (a.columns_of_block(TILES) < TILES * COLUMNS) {
#pragma unroll 1
        for (int i = threadIdx.x; i < a.heads_of_block * (DK / 16) * TILES * LANES; i += a.n_warps() * LANES) {
            to[i] = make_uint2(0, 0);
        }
    }
}

// Queries of columns that a warp takes, as many at once as come from memory side by side.
template <int DK, int AT_A_TIME>
struct query_rows {
    static constexpr int N = AT_A_TIME, PARTS = (int)(sizeof(row_values<DK>) / sizeof(float4));
    row_values<DK> x[N];

    // those of column `first` of the block's heads one after the other, and of as many further on as there are warps
    __device__ query_rows(const attention_args & a, const int first, const int first_head, const int first_column) {
        const int lane = threadIdx.x % LANES, n_columns = a.by_columns.d;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const int i = first + k * a.n_warps(), of_block = a.by_columns.quotient(i);
            const float4 * row = i < a.heads_of_block * n_columns
                                         ? query_row(a, of_block, i - of_block * n_columns, first_head, first_column)
                                         : nullptr;
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                x[k][part] = row && VALUES_OF_LANES * part + 4 * lane < DK ? row[LANES * part + lane]
                                                                           : make_float4(0, 0, 0, 0);
            }
        }
    }
};

// rotated, as halves
template <int DK, int TILES>
__device__ void put_query(const attention_args & a, uint2 * to, const int of_block, const int column,
                          row_values<DK> & x) {
    constexpr int STEPS = DK / 16;
    const int lane = threadIdx.x % LANES;
    rotate_row(x, a.q_rotation, lane);
#pragma unroll
    for (int k = 0; k < (int)(sizeof(x) / sizeof(float4)); ++k) {
        const int step = 8 * k + lane / 4;
        const float4 v = x[k];
        if (step < STEPS) {
            to[((of_block * STEPS + step) * TILES + column / COLUMNS) * LANES + column % COLUMNS * 4 + lane % 4] =
                    make_uint2(pair_of(v.x * a.q_scale, v.z * a.q_scale), pair_of(v.y * a.q_scale, v.w * a.q_scale));
        }
    }
}

// Queries of all heads of the block; each warp takes some columns, of which `rows` are the first.
template <int DK, int TILES, int N>
__device__ void put_queries(const attention_args & a, uint2 * to, const int first_head, const int first_column,
                            query_rows<DK, N> & rows) {
    const int n_columns = a.by_columns.d, n = a.heads_of_block * n_columns;
    int first = threadIdx.x / LANES;
#pragma unroll 1
    while (true) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const int i = first + k * a.n_warps(), of_block = a.by_columns.quotient(i);
            if (i < n) {
                put_query<DK, TILES>(a, to, of_block, i - of_block * n_columns, rows.x[k]);
            }
        }
        first += N * a.n_warps();
        if (first >= n) {
            return;
        }
        rows = query_rows<DK, N>(a, first, first_head, first_column);
    }
}

// What the offsets of codes come to, of 32 values of each column of each head: products with ones. All warps share them
// out.
template <int DK, int TILES>
__device__ void put_sums(const attention_args & a, const uint2 * queries, float4 * to) {
    constexpr int PARTS = DK / AT_ONCE;
    constexpr pair ONES = 0x3c003c00;
    const int lane = threadIdx.x % LANES, n = a.heads_of_block * PARTS * TILES;
#pragma unroll 1
    for (int i = threadIdx.x / LANES; i < n; i += a.n_warps()) {
        const int head = i / (PARTS * TILES), part = i / TILES % PARTS, tile = i % TILES;
        float c[4] = {};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const uint2 x = queries[((head * 2 * PARTS + 2 * part + k) * TILES + tile) * LANES + lane];
            add_product(c, ONES, ONES, ONES, ONES, x.x, x.y);
        }
        if (lane < 4) {
            const float unit = -a.offset / RAW_UNIT, exact_unit = -a.exact_offset / RAW_UNIT;
            float4 * here = to + ((head * PARTS + part) * 2 * TILES + tile) * 4 + lane;
            *here = make_float4(c[0] * unit, c[1] * unit, c[0] * unit, c[1] * unit);
            here[TILES * 4] = make_float4(c[0] * exact_unit, c[1] * exact_unit, c[0] * exact_unit, c[1] * exact_unit);
        }
    }
}

// what lots are made of, of a stream and one of its KV heads on
struct lot_sources {
    const char *k, *v, *mask, *blocks;  // of token 0

    __device__ lot_sources(const attention_args & a, const int first_head, const int stream)
        : k(a.cache.k.data + first_head * a.cache.k.of.head + stream * a.cache.k.of.stream),
          v(a.cache.v.data + first_head * a.cache.v.of.head + stream * a.cache.v.of.stream),
          mask((const char *)(a.cache.mask + stream * a.cache.mask_stream)),
          blocks((const char *)(a.cache.blocks + stream * a.cache.blocks_stream)) {
    }

    // `copy` of each of them, of a lot
    template <typename COPY>
    __device__ void each(const attention_args & a, const int lot, const uint32_t to, const COPY & copy) const {
        copy(to, k + (int64_t)lot * a.lot.k.of_lot, a.lot.k);
        copy(to + a.lot.v_at, v + (int64_t)lot * a.lot.v.of_lot, a.lot.v);
        copy(to + a.lot.mask_at, mask + (int64_t)lot * a.lot.mask.of_lot, a.lot.mask);
        copy(to + a.lot.blocks_at, blocks + (int64_t)lot * a.lot.blocks.of_lot, a.lot.blocks);
    }
};

// Places of lots in shared memory, one after the other and round again. Each has two barriers: one tells that a lot is
// there, the other that no warp reads it any more.
struct lot_place {
    uint32_t lots, barriers;  // of the first
    int i = 0, round = 0;

    __device__ lot_place(const char * lots, const char * barriers)
        : lots((uint32_t)__cvta_generic_to_shared(lots)), barriers((uint32_t)__cvta_generic_to_shared(barriers)) {
    }

    __device__ uint32_t full() const {
        return barriers + i * BARRIER_BYTES;
    }

    __device__ uint32_t empty() const {
        return full() + MOST_LOTS * BARRIER_BYTES;
    }

    // by no more places than there are
    __device__ void go_on(const attention_args & a, const int n = 1) {
        i += n;
        if (i >= a.n_lots) {
            i -= a.n_lots;
            ++round;
        }
    }

    // of the lot that is to be brought while that of this place is read
    __device__ lot_place ahead(const attention_args & a) const {
        lot_place next = *this;
        next.go_on(a, a.lots_ahead);
        return next;
    }
};

// by one warp, for all that read
inline __device__ void make_barriers(const attention_args & a, lot_place place) {
    place.i = threadIdx.x % LANES;
    if (place.i < a.n_lots) {
        make_barrier(place.full(), a.lot.is_by_rows ? 1 : a.lot.carriers * LANES);
        make_barrier(place.empty(), a.n_warps());
    }
}

// until no warp reads what was there
inline __device__ void wait_for_place(const lot_place & place) {
    if (place.round > 0) {
        wait_for_phase(place.empty(), (place.round - 1) & 1);
    }
}

// A lot as rows, by so many warps, of which this is the i-th.
inline __device__ void bring_rows(const attention_args & a, const lot_sources & from, const int lot,
                                  const lot_place & place, const int i, const int n) {
    if (!is_first_lane()) {
        return;
    }
    wait_for_place(place);
    if (i == 0) {
        announce_bytes(place.full(), a.lot.copied_bytes);
    }
    from.each(a, lot, place.lots + place.i * a.lot.bytes,
              [&](const uint32_t to, const char * here, const row_copy & rows) {
#pragma unroll 1
                  for (int row = i; row < rows.n_rows; row += n) {
                      copy_row_later(to + row * rows.pitch, here + row * rows.stride, rows.row_bytes, place.full());
                  }
              });
}

template <int N>
__device__ void copy_chunks(uint32_t to, const char * from, const int first, const row_copy & rows) {
#pragma unroll 1
    for (int i = first; i < rows.n_chunks; i += rows.step) {
        copy_later<N>(to, from);
        from += rows.stride_of_step;
        to += rows.pitch_of_step;
    }
}

// A lot as chunks of rows, by threads of which this is the i-th.
inline __device__ void bring_chunks(const attention_args & a, const lot_sources & from, const int lot,
                                    const lot_place & place, const int i) {
    wait_for_place(place);
    from.each(a, lot, place.lots + place.i * a.lot.bytes,
              [i](uint32_t there, const char * here, const row_copy & rows) {
                  if (i >= min(rows.step, rows.n_chunks)) {
                      return;
                  }
                  const int row = rows.by_row.quotient(i), chunk = i - row * rows.by_row.d;
                  there += row * rows.pitch + chunk * rows.chunk;
                  here += row * rows.stride + chunk * rows.chunk;
                  if (rows.chunk == 16) {
                      copy_chunks<16>(there, here, i, rows);
                  } else if (rows.chunk == 8) {
                      copy_chunks<8>(there, here, i, rows);
                  } else {
                      copy_chunks<4>(there, here, i, rows);
                  }
              });
    arrive_when_copied(place.full());
}

// by the warps whose turn it is, of which this is the i-th
inline __device__ void bring_lot(const attention_args & a, const lot_sources & from, const int lot,
                                 const lot_place & place, const int i) {
    if (a.lot.is_by_rows) {
        bring_rows(a, from, lot, place, 0, 1);
    } else {
        bring_chunks(a, from, lot, place, i * LANES + threadIdx.x % LANES);
    }
    __syncwarp();
}

}  // namespace kvtuner::cuda
