// Attention of few queries: every quantized key and value is read once for all query heads that share it, and becomes a
// number in the registers that the tensor cores read.
//
// A warp has 16 or 32 tokens of one KV head at a time. Queries are columns, 8 to a tile. Tokens come in lots, which all
// warps of a block read from shared memory while the next ones are on their way. The sums of a block are parts that a
// second kernel adds up.
#pragma once

#include "kvtuner-cuda-columns.cuh"
#include "kvtuner-cuda-lots.cuh"
#include "kvtuner-cuda-merge.cuh"

namespace kvtuner::cuda {

// what of the problem a block of threads has, and a warp of it
struct block_place {
    int warp, lane, head, sub;  // the latter: its KV head of the block, its 16 tokens of a lot
    int first_head, first_column, stream;
    int turn = 0, carrier = 0;  // the lots that the warp brings, and which of those warps it is

    __device__ block_place(const attention_args & a, const int n_columns)
        : warp(__shfl_sync(0xffffffff, threadIdx.x / LANES, 0)), lane(threadIdx.x % LANES), stream(blockIdx.z) {
        sub = a.by_heads.quotient(warp);
        head = warp - sub * a.heads_of_block;
        const int i = a.by_groups.quotient(blockIdx.y);
        first_head = (blockIdx.y - i * a.head_groups()) * a.heads_of_block;
        first_column = i * n_columns;
    }

    __device__ void take_turns(const lot_layout & lot) {
        turn = warp / lot.carriers;
        carrier = warp - turn * lot.carriers;
    }
};

// Units of exact rows that a warp has: `call` with the first slot of each.
template <typename CALL>
__device__ void each_exact_unit(const attention_args & a, const block_place & at, const CALL & call) {
    const int part = blockIdx.x;
    if (part >= a.share.n_parts) {
        return;
    }
    const int first = a.exact_first ? a.exact_first[at.stream] : 0;
    const int last = min(a.exact.n_tokens, first + a.share.n_slots);
#pragma unroll 1
    for (int unit = part + at.sub * a.share.n_parts; unit < a.share.n_units; unit += a.share.n_parts * a.sub_warps) {
        call(first + unit * TOKENS, last);
    }
}

// Exact rows come from anywhere, and where is known late: they are asked for before queries are made. Half of the lanes
// have a key each, the others a value.
inline __device__ void prefetch_exact_rows(const attention_args & a, const block_place & at) {
    const bool is_key = at.lane < TOKENS;
    const strides of = is_key ? a.exact.k.of : a.exact.v.of;
    const char * data = (is_key ? a.exact.k.data : a.exact.v.data) + (at.first_head + at.head) * of.head;
    each_exact_unit(a, at, [&](const int first, const int last) {
        const int slot = first + at.lane % TOKENS;
        const int row = slot < last ? a.exact_rows[slot] : -1;
#pragma unroll 1
        for (int i = row < 0 ? (int)of.head : 0; i < (int)of.head; i += 128) {
            prefetch(data + row * of.token + i);
        }
    });
}

template <int DK, int DV, int TILES>
__device__ void add_exact_rows(const attention_args & a, const block_place & at, column_sums<DK, DV, TILES> & sums) {
    const int head = at.first_head + at.head;
    each_exact_unit(a, at, [&](const int slot, const int last) {
        const auto row_of = [&](const int i) { return slot + i < last ? a.exact_rows[slot + i] : -1; };
        const auto place_of = [&](const cached_side & side, const int row) {
            return side.data + max(0, row) * side.of.token + head * side.of.head;
        };
        const int row = row_of(sums.g), row_8 = row_of(sums.g + 8);
        if (!__any_sync(0xffffffff, row >= 0 || row_8 >= 0)) {
            return;  // in short contexts many slots are empty
        }
        token_rows rows;
        rows.key = place_of(a.exact.k, row);
        rows.key_8 = place_of(a.exact.k, row_8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows.value[i] = place_of(a.exact.v, row_of(2 * sums.t + i % 2 + i / 2 * 8));
        }
        rows.kind_k = a.exact.k.kind;
        rows.kind_v = a.exact.v.kind;
        rows.next_key = rows.next_value = 0;
        token_marks marks[1] = { { a.exact.mask + at.stream * a.exact.mask_stream + slot, (int)a.exact.mask_query,
                                   row < 0, row_8 < 0, 0, 0 } };
        if (a.centers) {
            marks[0].block = row < 0 ? 0 : a.exact.blocks[slot + sums.g];
            marks[0].block_8 = row_8 < 0 ? 0 : a.exact.blocks[slot + sums.g + 8];
        }
        sums.template add<true>(a, head, rows, marks);
    });
}

// All lots that are to be there before the first step. They do not come to the last place, where queries lie.
inline __device__ void bring_first(const attention_args & a, const block_place & at, const lot_range & range,
                                   const lot_sources & from, lot_place place) {
    const int n = min(a.lots_ahead, range.last - range.first);
#pragma unroll 1
    for (place.i = at.turn; place.i < n; place.i += a.lot.turns) {
        bring_lot(a, from, range.first + place.i, place, at.carrier);
    }
}

// Lots are there a few steps before they are read: warps take turns to bring one.
template <int UNITS, int DK, int DV, int TILES>
__device__ void add_lots(const attention_args & a, const block_place & at, const lot_range & range,
                         const lot_sources & from, lot_place place, const char * lots,
                         column_sums<DK, DV, TILES> & sums) {
    const lot_layout & layout = a.lot;
    const int n_tokens = a.tokens_of_lot(), first = at.sub * UNITS * TOKENS;
    const int key_at = layout.k_tokens.at(first + sums.g) + at.head * (int)a.cache.k.of.head;
    const int value_at = layout.v_at + layout.v_tokens.at(first + 2 * sums.t) + at.head * (int)a.cache.v.of.head;
    int turn = range.first + at.turn;
#pragma unroll 1
    for (int lot = range.first; lot < range.last; ++lot) {
        const uint32_t full = place.full(), empty = place.empty();
        const char * here = lots + place.i * layout.bytes;
        if (lot == turn) {
            turn += layout.turns;
            if (lot + a.lots_ahead < range.last) {
                bring_lot(a, from, lot + a.lots_ahead, place.ahead(a), at.carrier);
            }
        }
        wait_for_phase(full, place.round & 1);
        place.go_on(a);
        token_rows rows;
        rows.key = here + key_at;
        rows.key_8 = rows.key + layout.key_8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows.value[i] = here + value_at + (i % 2 ? layout.value_1 : 0) + (i / 2 ? layout.value_8 : 0);
        }
        rows.kind_k = a.cache.k.kind;
        rows.kind_v = a.cache.v.kind;
        rows.next_key = layout.next_key;
        rows.next_value = layout.next_value;
        token_marks marks[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const int unit = first + u * TOKENS;
            marks[u] = { (const half *)(here + layout.mask_at) + unit, n_tokens, false, false, 0, 0 };
            if (a.centers) {
                const int * of_tokens = (const int *)(here + layout.blocks_at) + unit;
                marks[u].block = of_tokens[sums.g];
                marks[u].block_8 = of_tokens[sums.g + 8];
            }
        }
        sums.template add<false>(a, at.first_head + at.head, rows, marks);
        __syncwarp();
        if (at.lane == 0) {
            arrive(empty);
        }
    }
}

// The warps of a head add up what they have: a part of its columns, or if there is but one, all.
template <int DV, int TILES>
__device__ void merge_warps(const attention_args & a, const block_place & at, const bool is_one_part,
                            const float * values, const float2 * totals) {
    const int n_stored = a.columns_of_block(TILES), n_columns = min(n_stored, a.n_columns() - at.first_column);
    const int64_t first_part = ((int64_t)at.stream * gridDim.x + blockIdx.x) * a.n_head_kv * a.n_columns();
#pragma unroll 1
    for (int i = at.sub; i < n_columns; i += a.sub_warps) {
        const int of_all = (at.first_head + at.head) * a.n_columns() + at.first_column + i;
        const auto place_of = [&](const int sub) { return (sub * a.heads_of_block + at.head) * n_stored + i; };
        part_sums<DV> all;
        const float above = all.add_all(
                a.sub_warps, at.lane, [&](const int k) { return totals[place_of(k)]; },
                [&](const int k) { return values + place_of(k) * DV; });
        if (is_one_part) {
            output_row(a.merge, DV, of_all, at.stream).template store<DV>(all, above, a.merge.rotation, at.lane);
            continue;
        }
        all.put(a.merge.parts + (first_part + of_all) * DV, at.lane);
        if (at.lane == 0) {
            a.merge.sums[first_part + of_all] = make_float2(above, all.sum);
        }
    }
}

// when no warp reads the shared memory any more that is used here
template <int DK, int DV, int TILES>
__device__ void store_and_merge(const attention_args & a, const block_place & at, const bool is_one_part,
                                float * values, column_sums<DK, DV, TILES> & sums) {
    const int n_stored = a.columns_of_block(TILES);
    float2 * totals = (float2 *)(values + a.n_warps() * n_stored * DV);
    sums.store(a, at.first_column, values + at.warp * n_stored * DV, totals + at.warp * n_stored);
    wait_for_warps(a.n_warps());
    merge_warps<DV, TILES>(a, at, is_one_part, values, totals);
}

// queries and their sums, as halves in shared memory, and from there to the warps of each head; is_for_lot: a lot comes
// to their place
template <int DK, int DV, int TILES, int N>
__device__ column_sums<DK, DV, TILES> take_queries(const attention_args & a, const block_place & at, uint2 * queries,
                                                   float4 * sums, query_rows<DK, N> & rows, const bool is_for_lot) {
    put_queries<DK, TILES>(a, queries, at.first_head, at.first_column, rows);
    wait_for_warps(a.n_warps());
    put_sums<DK, TILES>(a, queries, sums);
    column_sums<DK, DV, TILES> columns(queries + at.head * (DK / 16) * TILES * LANES,
                                       sums + at.head * (DK / AT_ONCE) * 2 * TILES * 4, at.lane);
    columns.set_columns(a, at.first_head + at.head, at.first_column);
    if (is_for_lot) {
        end_writes();
    }
    wait_for_warps(a.n_warps());
    return columns;
}

// UNITS: of 16 tokens, that a warp has at once
template <int DK, int DV, int TILES, int UNITS>
__global__ void __launch_bounds__(most_warps(DV, TILES) * LANES, 1) attend(const attention_args a) {
    using query_type = query_parts<DK, TILES>;
    constexpr int SUM_BYTES = sum_bytes(DK, TILES);
    extern __shared__ __align__(128) char lots[];
    block_place at(a, TILES * COLUMNS);
    const lot_range range(a);
    // behind the lots: barriers, sums of queries, and queries, unless they lie where the last lot comes to
    char * behind = lots + a.n_lots * a.lot.bytes;
    const lot_place place(lots, behind);
    at.take_turns(a.lot);
    behind += BARRIERS_BYTES;
    float4 * query_sums = (float4 *)behind;
    uint2 * queries = (uint2 *)(query_type::IN_REGISTERS ? lots + (a.n_lots - 1) * a.lot.bytes
                                                         : behind + a.heads_of_block * SUM_BYTES);
    const lot_sources from(a, at.first_head, at.stream);
    clear_queries<DK, TILES>(a, queries);
    if (at.warp == 0) {
        make_barriers(a, place);
        end_writes();
    }
    __syncthreads();
    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    query_rows<DK, 2> rows(a, at.warp, at.first_head, at.first_column);
    bring_first(a, at, range, from, place);
    prefetch_exact_rows(a, at);
    auto sums = take_queries<DK, DV, TILES>(a, at, queries, query_sums, rows, /*is_for_lot =*/true);

    add_exact_rows(a, at, sums);
    sums.q.shrink(a.high_k);
    sums.o.enter(a);
    add_lots<UNITS>(a, at, range, from, place, lots, sums);
    sums.o.leave(a);

    wait_for_warps(a.n_warps());
    store_and_merge(a, at, a.merge.n_parts == 1, (float *)lots, sums);
}

}  // namespace kvtuner::cuda
