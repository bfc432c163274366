// Attention over few tokens: a block of threads has some of a KV head's, or all, where nothing is left to be merged by
// another kernel. Its warps read the cache where it is. The time to load instructions counts here, so there are few.
#pragma once

#include "kvtuner-cuda-decode.cuh"
#include "kvtuner-cuda-early.cuh"

namespace kvtuner::cuda {

constexpr int UNITS_LOOKED_AT = 4;  // of 16 tokens, before any is read: a lane has an eighth of one

// the first token of a warp's unit of its part
inline __device__ int first_token(const attention_args & a, const block_place & at, const lot_range & range,
                                  const int unit) {
    return (at.sub + (range.first + unit) * a.sub_warps) * TOKENS;
}

// Whether the one query sees a token of those that this lane looks at: it has an eighth of one of the warp's units.
inline __device__ bool sees_tokens(const attention_args & a, const block_place & at, const lot_range & range) {
    if (a.n_query > 1) {
        return true;
    }
    const int token = first_token(a, at, range, at.lane / 8) + at.lane % 8 * 2;
    if (range.first + at.lane / 8 >= range.last || token >= a.cache.n_tokens) {
        return false;
    }
    const half2 mask = *(const half2 *)(a.cache.mask + at.stream * a.cache.mask_stream + token);
    return !__hisinf(__low2half(mask)) || !__hisinf(__high2half(mask));
}

// `seen`: of all lanes
template <int DK, int DV, int TILES>
__device__ void add_cache(const attention_args & a, const block_place & at, const lot_range & range, uint32_t seen,
                          column_sums<DK, DV, TILES> & sums) {
    const token_source & cache = a.cache;
    const char * k = cache.k.data + at.stream * cache.k.of.stream + at.first_head * cache.k.of.head;
    const char * v = cache.v.data + at.stream * cache.v.of.stream + at.first_head * cache.v.of.head;
#pragma unroll 1
    for (int unit = 0; unit < range.last - range.first; ++unit) {
        const int token = first_token(a, at, range, unit);
        const bool is_unseen = unit < UNITS_LOOKED_AT && (seen >> unit * 8 & 0xff) == 0;
        if (is_unseen || token >= cache.n_tokens) {
            continue;  // with exact ends these are all tokens of a short context
        }
        token_rows rows;
        rows.key = k + (token + sums.g) * cache.k.of.token;
        rows.key_8 = rows.key + 8 * cache.k.of.token;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows.value[i] = v + (token + 2 * sums.t + i % 2 + i / 2 * 8) * cache.v.of.token;
        }
        rows.kind_k = cache.k.kind;
        rows.kind_v = cache.v.kind;
        rows.next_key = rows.next_value = 0;
        token_marks marks[1] = { { cache.mask + at.stream * cache.mask_stream + token, (int)cache.mask_query, false,
                                   false, 0, 0 } };
        if (a.centers) {
            const int * blocks = cache.blocks + at.stream * cache.blocks_stream + token;
            marks[0].block = blocks[sums.g];
            marks[0].block_8 = blocks[sums.g + 8];
        }
        sums.template add<false>(a, at.first_head, rows, marks);
    }
}

// Queries and tokens of a block, when the kernel before has ended; whether this warp has any of the cache.
template <int DK, int DV, int TILES>
__device__ bool add_tokens(const attention_args & a, const block_place & at, const lot_range & range, char * shared,
                           exact_rows & exact, column_sums<DK, DV, TILES> & sums) {
    uint2 * queries = (uint2 *)(shared + sum_bytes(DK, TILES));
    clear_queries<DK, TILES>(a, queries);
    __syncthreads();
    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    query_rows<DK, 1> rows(a, at.warp, at.first_head, at.first_column);
    exact.find(a, at.lane);
    const bool sees = sees_tokens(a, at, range);
    put_queries<DK, TILES>(a, queries, at.first_head, at.first_column, rows);
    exact.bring(a, at.lane);
    sums = take_queries<DK, DV, TILES>(a, at, queries, (float4 *)shared, /*is_for_lot =*/false);
    const uint32_t seen = __ballot_sync(0xffffffff, sees);
    add_exact_rows(a, at.lane, exact, sums);
    if (seen == 0 && range.last - range.first <= UNITS_LOOKED_AT) {
        return false;
    }
    sums.q.shrink(a.high_k);
    sums.o.enter(a);
    add_cache(a, at, range, seen, sums);
    return true;
}

// Where it starts while the kernel before still runs, its warps first go through its end for nothing: instructions come
// from memory anew in each layer, a few at a time, and these are then here.
template <int DK, int DV, int TILES>
__global__ void __launch_bounds__(most_warps(DV, TILES) * LANES, 1) attend_short(const attention_args a) {
    extern __shared__ __align__(128) char shared[];
    const block_place at(a, TILES * COLUMNS, 1);
    const lot_range range(a);
    exact_rows exact = exact_rows_of(a, at, shared);
    ask_for_part(a, range, at.stream, at.first_head);
    ask_for_query<DK>(a, at.warp, at.first_head, at.first_column);
    exact.ask(a, at.lane);
    __syncwarp();
#pragma unroll 1
    for (bool is_real = !STARTS_EARLY;; is_real = true) {
        column_sums<DK, DV, TILES> sums((uint2 *)shared, (float4 *)shared, at.lane);
        if (!is_real || add_tokens(a, at, range, shared, exact, sums)) {
            sums.o.leave(a);
        }
        wait_for_warps(a.n_warps());
        store_and_merge<DV>(a, at, (float *)shared, sums, is_real);
        if (is_real) {
            return;
        }
        wait_for_warps(a.n_warps());
    }
}

}  // namespace kvtuner::cuda
