// Attention of many queries: tiles of quantized tokens become halves in shared memory, once for all query heads of a
// KV head and all queries of a block of threads, whose warps multiply them there. No copy of the cache is made.
#pragma once

#include "kvtuner-cuda-prefill-put.cuh"
#include "kvtuner-cuda-prefill-sums.cuh"

#include "ggml-cuda/common.cuh"

namespace kvtuner::cuda {

// The tiles of a block of threads in turn: each is brought as it is, then put as halves, then added to sums. Half of
// the warps put a tile before they add the one before it, the others the other way round, so that each processor of a
// multiprocessor has one warp that multiplies while another puts. They wait for each other at each tile: where they may
// drift apart, they come to do the same at the same time, and it takes a tenth longer.
template <int DK, int DV>
struct tile_steps {
    using sizes = prefill_sizes<DK, DV>;
    const prefill_args & a;
    const prefill_place & at;
    char * const shared;
    const uint32_t shared_at = (uint32_t)__cvta_generic_to_shared(shared);
    tile_walk walk = { a, at, sizes::ROWS, sizes::TOKENS };
    const side_share mine = side_share(at);
    const side_copy cache = { a, at, mine, a.cache, a.raw_cache };
    const int n_exact = a.seen_by.n_exact * SEEN_TOKENS / sizes::TOKENS;  // tiles

    __device__ void make_barriers() const {
        if (threadIdx.x < 2) {
            make_barrier(barrier(threadIdx.x), PREFILL_THREADS);
        }
        __syncthreads();
    }

    // the i-th, by all threads
    __device__ tile_number bring(const int i) {
        const tile_number tile = walk.next(at.lane);
        if (tile.is_there()) {
            const uint32_t to = shared_at + sizes::RAW_AT + i % 2 * a.raw_bytes;
            tile.i < n_exact ? bring_exact(tile, to) : bring_cache(tile.i - n_exact, to);
            arrive_when_copied(barrier(i));
            __syncwarp();
        }
        return tile;
    }

    __device__ void put(const tile_number tile, const int i) const {
        wait_for_phase(barrier(i), i / 2 % 2);
        put_tile<DK, DV>(a, at, mine, tile_tokens(a, tile, sizes::TOKENS), shared + sizes::RAW_AT + i % 2 * a.raw_bytes,
                         shared + sizes::TILES_AT + i % 2 * sizes::TILE_BYTES);
        __syncwarp();  // threads whose tokens are not there have gone another way
    }

private:
    // that a tile is there
    __device__ uint32_t barrier(const int i) const {
        return shared_at + sizes::BARRIERS_AT + i % 2 * BARRIER_BYTES;
    }

    __device__ void bring_exact(const tile_number tile, const uint32_t to) const {
        const side_copy exact(a, at, mine, a.exact, a.raw_exact);
        const tile_tokens tokens(a, tile, sizes::TOKENS);
#define KVTUNER_COPY(N) copy_some<N>(exact, tokens.rows, tokens.n, to + exact.to)
        KVTUNER_FOR_CHUNK(exact.chunk, KVTUNER_COPY)
#undef KVTUNER_COPY
    }

    __device__ void bring_cache(const int tile, const uint32_t to) const {
        const int first = tile * sizes::TOKENS, n = min(sizes::TOKENS, a.cache.n_tokens - first);
#define KVTUNER_COPY(N) copy_tokens<N>(cache, first, n, to + cache.to)
        KVTUNER_FOR_CHUNK(cache.chunk, KVTUNER_COPY)
#undef KVTUNER_COPY
    }
};

template <int DK, int DV>
__global__ void __launch_bounds__(PREFILL_THREADS, 1) attend_many(const prefill_args a) {
    using sizes = prefill_sizes<DK, DV>;
    extern __shared__ __align__(128) char shared[];
    const prefill_place at(a, sizes::ROWS);
    tile_steps<DK, DV> steps = { a, at, shared };
    steps.make_barriers();
    ggml_cuda_pdl_sync();

    tile_number before = NO_TILE, now = steps.bring(0), next = steps.bring(1);
    put_rows<DK, sizes::ROWS>(a, at, shared);
    row_sums<DK, DV> sums(at, steps.shared_at);
    const bool is_late = at.warp >= PREFILL_WARPS / 2;
#pragma unroll 1
    for (int i = 0;; ++i) {
        tile_number ahead = NO_TILE;
        const auto wait_and_bring = [&] {
            wait_anywhere(PREFILL_WARPS);
            ahead = steps.bring(i);
        };
        if (now.is_there()) {
            steps.put(now, i);
            if (is_late) {
                wait_and_bring();
            }
        }
        const tile_number tile = is_late ? now : before;
        if (tile.is_there()) {
            sums.add(a, at, tile, (is_late ? i : i + 1) % 2 * sizes::TILE_BYTES);
        }
        if (!now.is_there()) {
            break;
        }
        if (!is_late) {
            wait_and_bring();
        }
        before = now;
        now = next;
        next = ahead;
    }
    ggml_cuda_pdl_lc();
    sums.store(a, at);
}

}  // namespace kvtuner::cuda
