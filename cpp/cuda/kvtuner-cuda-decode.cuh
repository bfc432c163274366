// Attention of few queries: every quantized key and value is read once for all query heads that share it, and becomes a
// number in the registers that the tensor cores read.
//
// A warp has 16 or 32 tokens of one KV head at a time. Queries are columns, 8 to a tile. Tokens come in lots, which all
// warps of a block read from shared memory while the next ones are on their way. The sums of a block are parts that a
// second kernel adds up.
#pragma once

#include "kvtuner-cuda-columns.cuh"
#include "kvtuner-cuda-exact-rows.cuh"
#include "kvtuner-cuda-lots.cuh"
#include "kvtuner-cuda-merge.cuh"

namespace kvtuner::cuda {

// what of the problem a block of threads has, and a warp of it
struct block_place {
    int warp, lane, team, member, head, sub;  // the latter: its KV head of the block, its tokens of a lot
    int first_head, first_column, stream;
    int turn = 0, carrier = 0;  // the lots that the warp brings, and which of those warps it is

    __device__ block_place(const attention_args & a, const int n_columns, const int team_size)
        : warp(__shfl_sync(0xffffffff, threadIdx.x / LANES, 0)),
          lane(threadIdx.x % LANES),
          team(warp / team_size),
          member(warp % team_size),
          stream(blockIdx.z) {
        sub = a.by_heads.quotient(team);
        head = team - sub * a.heads_of_block;
        const int i = a.by_groups.quotient(blockIdx.y);
        first_head = (blockIdx.y - i * a.head_groups()) * a.heads_of_block;
        first_column = i * n_columns;
    }

    __device__ void take_turns(const lot_layout & lot) {
        turn = warp / lot.carriers;
        carrier = warp - turn * lot.carriers;
    }
};

// The exact rows of a warp, with room for them in shared memory. The last warps have the first, as in short contexts
// the first make queries.
inline __device__ exact_rows exact_rows_of(const attention_args & a, const block_place & at, char * shared) {
    char * here = shared + a.exact_at.at + (a.n_warps() - 1 - at.warp) * a.exact_at.bytes;
    return exact_rows(a, here, a.sub_warps - 1 - at.sub, at.first_head + at.head);
}

// Lots that are to be there before the first step, of all that are: from `begun` to n. Rows are brought by all warps.
inline __device__ void bring_first(const attention_args & a, const block_place & at, const lot_range & range,
                                   const lot_sources & from, lot_place place, const int begun, const int n) {
    const int end = min(n, range.last - range.first);
    const bool are_rows = a.lot.is_by_rows;
#pragma unroll 1
    for (place.i = are_rows ? begun : at.turn; place.i < end; place.i += are_rows ? 1 : a.lot.turns) {
        if (are_rows) {
            bring_rows(a, from, range.first + place.i, place, at.warp, a.n_warps());
            __syncwarp();
        } else if (place.i >= begun) {
            bring_lot(a, from, range.first + place.i, place, at.carrier);
        }
    }
}

// Lots are there a few steps before they are read: warps take turns to bring one.
template <int UNITS, typename SUMS>
__device__ void add_lots(const attention_args & a, const block_place & at, const lot_range & range,
                         const lot_sources & from, lot_place place, const char * lots, SUMS & sums) {
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

// The teams of a head add up what they have: a part of its columns, or if there is but one, all.
template <int DV, int TILES>
__device__ void merge_teams(const attention_args & a, const block_place & at, const float * values,
                            const float2 * totals, const bool is_real) {
    constexpr int TEAM = team_warps(DV);
    const int n_stored = a.columns_of_block(TILES), n_columns = min(n_stored, a.n_columns() - at.first_column);
    const int64_t first_part = ((int64_t)at.stream * gridDim.x + blockIdx.x) * a.n_head_kv * a.n_columns();
#pragma unroll 1
    for (int i = is_real ? at.sub * TEAM + at.member : 0; i < n_columns; i += a.sub_warps * TEAM) {
        const int of_all = (at.first_head + at.head) * a.n_columns() + at.first_column + i;
        const auto place_of = [&](const int sub) { return (sub * a.heads_of_block + at.head) * n_stored + i; };
        part_sums<DV> all;
        const float above = all.add_all(
                a.sub_warps, at.lane, [&](const int k) { return totals[place_of(k)]; },
                [&](const int k) { return values + place_of(k) * row_pitch(DV); });
        if (a.merge.n_parts == 1) {
            const output_row row(a.merge, DV, of_all, at.stream);
            row.template store<DV>(all, above, a.merge.rotation, at.lane, is_real);
        } else if (is_real) {
            all.put(a.merge.parts + (first_part + of_all) * DV, at.lane);
            if (at.lane == 0) {
                a.merge.sums[first_part + of_all] = make_float2(above, all.sum);
            }
        }
    }
}

// When no warp reads the shared memory any more that is used here. OF_WARP: the values that each has. Where it is not
// real, one warp goes through each half.
template <int DV, int DK, int OF_WARP, int TILES>
__device__ void store_and_merge(const attention_args & a, const block_place & at, float * values,
                                column_sums<DK, OF_WARP, TILES> & sums, const bool is_real = true) {
    const int n_stored = a.columns_of_block(TILES), first = at.team * n_stored;
    float2 * totals = (float2 *)(values + a.n_teams() * n_stored * row_pitch(DV));
    if (is_real || at.warp == 0) {
        float * here = values + first * row_pitch(DV) + at.member * OF_WARP;
        sums.store(a, at.first_column, here, row_pitch(DV), totals + first);
    }
    wait_for_warps(a.n_warps());
    if (is_real || at.warp == 1) {
        merge_teams<DV, TILES>(a, at, values, totals, is_real);
    }
}

// Queries that are in shared memory and their sums, from there to the warps of each head; is_for_lot: a lot comes to
// their place.
template <int DK, int DV, int TILES>
__device__ column_sums<DK, DV, TILES> take_queries(const attention_args & a, const block_place & at,
                                                   const uint2 * queries, float4 * sums, const bool is_for_lot) {
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

// what is left of a block of threads when its exact rows are added
template <int UNITS, int DV, typename SUMS>
__device__ void add_lots_and_store(const attention_args & a, const block_place & at, const lot_range & range,
                                   const lot_sources & from, const lot_place & place, char * shared, SUMS & sums) {
    sums.o.enter(a);
    add_lots<UNITS>(a, at, range, from, place, shared, sums);
    sums.o.leave(a);
    wait_for_warps(a.n_warps());
    store_and_merge<DV>(a, at, (float *)shared, sums);
}

// UNITS: of 16 tokens, that a warp has at once
template <int DK, int DV, int TILES, int UNITS>
__global__ void __launch_bounds__(most_warps(DV, TILES) * LANES, 1) attend(const attention_args a) {
    using query_type = query_parts<DK, TILES>;
    constexpr int SUM_BYTES = sum_bytes(DK, TILES);
    extern __shared__ __align__(128) char shared[];
    block_place at(a, TILES * COLUMNS, 1);
    const lot_range range(a);
    // behind the lots: barriers, sums of queries, and queries, unless they lie where the last lot comes to
    char * behind = shared + a.behind_lots;
    const lot_place place(shared, behind);
    at.take_turns(a.lot);
    const int n_queries = a.heads_of_block * (DK / 16) * TILES * LANES;
    uint2 * queries = query_type::IN_REGISTERS ? (uint2 *)behind - n_queries
                                               : (uint2 *)(behind + BARRIERS_BYTES + a.heads_of_block * SUM_BYTES);
    const lot_sources from(a, at.first_head, at.stream);
    clear_queries<DK, TILES>(a, queries);
    if (at.warp == 0) {
        make_barriers(a, place);
        end_writes();
    }
    __syncthreads();
    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    const int part = blockIdx.x;
    const bool has_exact_rows = part < a.share.n_parts;
    const int n_first = has_exact_rows ? a.exact_at.first_lots : a.lots_ahead;
    query_rows<DK, 2> rows(a, at.warp, at.first_head, at.first_column);
    exact_rows exact = exact_rows_of(a, at, shared);
    bring_first(a, at, range, from, place, 0, n_first);
    exact.find(a, at.lane);
    put_queries<DK, TILES>(a, queries, at.first_head, at.first_column, rows);
    exact.bring(a, at.lane);
    auto sums = take_queries<DK, DV, TILES>(a, at, queries, (float4 *)(behind + BARRIERS_BYTES), /*is_for_lot =*/true);

    if (has_exact_rows) {
        add_exact_rows(a, at.lane, exact, sums);
        // more lots come to the place of exact rows; where warps have 2 units of a lot, there always are more
        if (UNITS > 1 || range.last - range.first > n_first) {
            end_writes();
            wait_for_warps(a.n_warps());
            bring_first(a, at, range, from, place, n_first, a.lots_ahead);
        }
    }
    sums.q.shrink(a.high_k);
    add_lots_and_store<UNITS, DV>(a, at, range, from, place, shared, sums);
}

}  // namespace kvtuner::cuda
