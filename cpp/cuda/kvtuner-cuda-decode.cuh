// Attention of few queries: every quantized key and value is read once for all query heads that share it, and becomes a
// number in the registers that the tensor cores read.
//
// A warp has 16 tokens of one KV head at a time. Queries are columns, 8 to a tile. Tokens come in lots, which all warps
// of a block read from shared memory while the next ones are on their way. The sums of a block are parts that a second
// kernel adds up.
#pragma once

#include "kvtuner-cuda-columns.cuh"
#include "kvtuner-cuda-lots.cuh"
#include "kvtuner-cuda-merge.cuh"

namespace kvtuner::cuda {

template <int DK, int DV, int TILES>
__global__ void __launch_bounds__(most_warps(DV, TILES) * LANES, 1) attend(const attention_args a) {
    using query_type = query_parts<DK, TILES>;
    constexpr int SUM_BYTES = sum_bytes(DK, TILES);
    extern __shared__ __align__(128) char lots[];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int head = warp % a.heads_of_block, sub = warp / a.heads_of_block;
    const int first_head = blockIdx.y % a.head_groups() * a.heads_of_block;
    const int first_column = blockIdx.y / a.head_groups() * TILES * COLUMNS;
    const int stream = blockIdx.z, n_tokens = a.tokens_of_lot();
    const lot_layout & layout = a.lot;
    const lot_range range(a);
    // behind the lots: sums of queries, and queries, unless they lie where the last lot comes to
    char * behind = lots + a.n_lots * layout.bytes;
    float4 * query_sums = (float4 *)behind;
    uint2 * queries =
            (uint2 *)(query_type::IN_REGISTERS ? behind - layout.bytes : behind + a.heads_of_block * SUM_BYTES);

    const lot_copies copies = { a.cache.k.data + first_head * a.cache.k.of.head + stream * a.cache.k.of.stream,
                                a.cache.v.data + first_head * a.cache.v.of.head + stream * a.cache.v.of.stream,
                                (const char *)(a.cache.mask + stream * a.cache.mask_stream),
                                (const char *)(a.cache.blocks + stream * a.cache.blocks_stream),
                                (uint32_t)__cvta_generic_to_shared(lots) };

    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    for (int i = 0; i < a.n_lots - 1; ++i) {
        copies.ask_for(a, range.first + i, range.last, i);
    }
    put_queries<DK, TILES>(a, queries, first_head, first_column);
    __syncthreads();
    queries += head * (DK / 16) * TILES * LANES;
    query_sums += head * (DK / AT_ONCE) * 2 * TILES * 4;
    if (sub == 0) {
        put_sums<DK, TILES>(a, queries, query_sums, lane);
    }
    column_sums<DK, DV, TILES> sums(queries, query_sums, lane);
    sums.set_columns(a, first_head + head, first_column);
    __syncthreads();

    const int exact_first = a.exact_first ? a.exact_first[stream] : 0;
    for (int lot = range.exact_first; lot < range.exact_last; ++lot) {
        const int slot = exact_first + (lot * a.sub_warps + sub) * TOKENS;
        const auto row_of = [&](const int i) { return slot + i < a.exact.n_tokens ? a.exact_rows[slot + i] : -1; };
        const auto at = [&](const cached_side & side, const int row) {
            return side.data + max(0, row) * side.of.token + (first_head + head) * side.of.head;
        };
        const int row = row_of(sums.g), row_8 = row_of(sums.g + 8);
        token_rows rows;
        rows.key = at(a.exact.k, row);
        rows.key_8 = at(a.exact.k, row_8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows.value[i] = at(a.exact.v, row_of(2 * sums.t + i % 2 + i / 2 * 8));
        }
        rows.type_k = a.exact.k.type;
        rows.type_v = a.exact.v.type;
        token_marks marks = {
            a.exact.mask + stream * a.exact.mask_stream + slot, (int)a.exact.mask_query, row < 0, row_8 < 0, 0, 0
        };
        if (a.centers) {
            marks.block = row < 0 ? 0 : a.exact.blocks[slot + sums.g];
            marks.block_8 = row_8 < 0 ? 0 : a.exact.blocks[slot + sums.g + 8];
        }
        sums.template add<true>(a, first_head + head, rows, marks);
    }

    int place = 0;
    for (int lot = range.first; lot < range.last; ++lot) {
        wait_for_lots_but(a.n_lots - 2);
        __syncthreads();
        copies.ask_for(a, lot + a.n_lots - 1, range.last, place == 0 ? a.n_lots - 1 : place - 1);
        const char * here = lots + place * layout.bytes;
        place = place + 1 == a.n_lots ? 0 : place + 1;
        const char * k = here + sub * TOKENS * layout.k_token + head * (int)a.cache.k.of.head;
        const char * v = here + layout.v_at + sub * TOKENS * layout.v_token + head * (int)a.cache.v.of.head;
        token_rows rows;
        rows.key = k + sums.g * layout.k_token;
        rows.key_8 = rows.key + 8 * layout.k_token;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            rows.value[j] = v + (2 * sums.t + j % 2 + j / 2 * 8) * layout.v_token;
        }
        rows.type_k = a.cache.k.type;
        rows.type_v = a.cache.v.type;
        const int * of_tokens = (const int *)(here + layout.blocks_at) + sub * TOKENS;
        token_marks marks = { (const half *)(here + layout.mask_at) + sub * TOKENS, n_tokens, false, false, 0, 0 };
        if (a.centers) {
            marks.block = of_tokens[sums.g];
            marks.block_8 = of_tokens[sums.g + 8];
        }
        sums.template add<false>(a, first_head + head, rows, marks);
    }
    // the warps of a head add up what they have: a part of its columns, or if there is but one, all
    constexpr int MOST_COLUMNS = TILES * COLUMNS;
    float * values = (float *)lots;
    float2 * totals = (float2 *)(values + a.heads_of_block * a.sub_warps * MOST_COLUMNS * DV);
    __syncthreads();
    sums.store(a, first_column, values + warp * MOST_COLUMNS * DV, totals + warp * MOST_COLUMNS);
    __syncthreads();
    const int n_columns = min(MOST_COLUMNS, a.n_columns() - first_column);
#pragma unroll 1
    for (int i = warp; i < a.heads_of_block * n_columns; i += blockDim.x / LANES) {
        const int of_block = a.heads_of_block == 1 ? 0 : i / n_columns, column = i - of_block * n_columns;
        const int of_all = (first_head + of_block) * a.n_columns() + first_column + column;
        const output_row row(a.merge, DV, of_all, stream);
        float above = a.merge.n_parts > 1 ? NO_SCORE : row.sink;
#pragma unroll 1
        for (int k = 0; k < a.sub_warps; ++k) {
            above = fmaxf(above, totals[(k * a.heads_of_block + of_block) * MOST_COLUMNS + column].x);
        }
        part_sums<DV> all;
#pragma unroll 1
        for (int k = 0; k < a.sub_warps; ++k) {
            const int at = (k * a.heads_of_block + of_block) * MOST_COLUMNS + column;
            const float weight = exp2f(totals[at].x - above);
            all.sum += weight * totals[at].y;
            all.add(values + at * DV, weight, lane);
        }
        if (a.merge.n_parts == 1) {
            row.template store<DV>(all.x, all.sum, above, a.merge.rotation, lane);
            continue;
        }
        const int64_t part = ((int64_t)stream * gridDim.x + blockIdx.x) * a.n_head_kv * a.n_columns() + of_all;
        all.put(a.merge.parts + part * DV, lane);
        if (lane == 0) {
            a.merge.sums[part] = make_float2(above, all.sum);
        }
    }
}

}  // namespace kvtuner::cuda
