// Attention of many queries: tiles of quantized tokens become halves in shared memory, once for all query heads of a
// KV head and all queries of a block of threads, whose warps multiply them there. No copy of the cache is made.
#pragma once

#include "kvtuner-cuda-prefill-tiles.cuh"

#include "ggml-cuda/common.cuh"

namespace kvtuner::cuda {

// what a warp sums of its rows: (g, 2t), (g, 2t + 1), (g + 8, 2t) and (g + 8, 2t + 1) of each 16 x 8 tile
template <int DK, int DV>
struct row_sums {
    using sizes = prefill_sizes<DK, DV>;
    static constexpr int TILES = sizes::ROW_TILES, TOKENS = sizes::TOKENS;
    static constexpr int HALF = 32;                 // the tokens of which scores are at once
    static constexpr int UNITS = TILES * HALF / 8;  // of 8 tokens and 16 rows
    using half_scores = float[TILES][HALF / 8][4];
    using half_weights = pair[TILES][HALF / 16][4];  // as the factor of a product

    const int lane, g, t, first_row;  // the latter: of the KV head
    uint32_t q_at, k_at, v_at;        // rows of matrices that this lane names
    float most[TILES][2], sum[TILES][2];
    float values[TILES][DV / 8][4];

    __device__ row_sums(const prefill_place & at, const uint32_t shared)
        : lane(at.lane), g(lane / 4), t(lane % 4), first_row(at.first_row + at.warp * TILES * 16) {
        const int of_16 = lane % 16, behind_16 = lane / 16, of_8 = lane % 8 + behind_16 * 8, behind_8 = lane / 8 % 2;
        q_at = shared + (at.warp * TILES * 16 + of_16) * sizes::PITCH_K + behind_16 * 16;
        k_at = shared + sizes::TILES_AT + of_8 * sizes::PITCH_K + behind_8 * 16;
        v_at = shared + sizes::TILES_AT + sizes::V_AT + of_16 * sizes::PITCH_V + behind_16 * 16;
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                most[m][j] = NO_SCORE;
                sum[m][j] = 0;
            }
#pragma unroll
            for (int i = 0; i < DV / 8; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    values[m][i][j] = 0;
                }
            }
        }
    }

    // All of a tile, which lies so many bytes behind the first. While tensor cores have half of a large one, weights
    // are made of the scores of the other.
    __device__ void add(const prefill_args & a, const prefill_place & at, const tile_number tile,
                        const uint32_t behind) {
        const uint32_t keys = k_at + behind, values_of_tile = v_at + behind;
        const auto nothing = [](int, int) {};
        half_scores first = {}, last = {};
        half_weights p, p_last;
        score(first, keys, nothing);
        change(a, at, tile, 0, first);
        raise_if_above(first, [](int, const float(&)[2]) {});
        if constexpr (TOKENS == HALF) {
            weigh(first, p, 0, 1);
            add_values(p, values_of_tile, nothing);
        } else {
            score(last, keys + HALF * sizes::PITCH_K, [&](int i, int n) { weigh(first, p, i, n); });
            change(a, at, tile, HALF, last);
            raise_if_above(last, [&](int m, const float(&factor)[2]) { scale(p[m], factor); });
            add_values(p, values_of_tile, [&](int i, int n) { weigh(last, p_last, i, n); });
            add_values(p_last, values_of_tile + HALF * sizes::PITCH_V, nothing);
        }
    }

    // as parts that another kernel adds up
    __device__ void store(const prefill_args & a, const prefill_place & at) {
        const int64_t first = ((int64_t)at.stream * a.merge.n_parts + at.part) * a.merge.n_columns() +
                              (int64_t)at.head * a.n_columns();
#pragma unroll
        for (int i = 0; i < TILES * 2; ++i) {
            const int row = first_row + i * 8 + g;
            float total = sum[i / 2][i % 2];
            total += __shfl_xor_sync(0xffffffff, total, 1);
            total += __shfl_xor_sync(0xffffffff, total, 2);
            const bool is_there = row < a.n_columns();
            if (is_there && t == 0) {
                a.merge.sums[first + row] = make_float2(most[i / 2][i % 2], total);
            }
            store_row(i, is_there, a.merge.parts + (first + row) * DV);
        }
    }

private:
    // Keys of half a tile times queries; `between` is called after each step of these, of so many.
    template <typename BETWEEN>
    __device__ void score(half_scores & s, const uint32_t keys, const BETWEEN & between) const {
        constexpr int STEPS = DK / 16;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            pair q[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                load_matrices(q[m], q_at + m * 16 * sizes::PITCH_K + step * 32);
            }
#pragma unroll
            for (int n = 0; n < HALF / 16; ++n) {
                pair k[4];
                load_matrices(k, keys + n * 16 * sizes::PITCH_K + step * 32);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_product(s[m][2 * n], q[m][0], q[m][1], q[m][2], q[m][3], k[0], k[1]);
                    add_product(s[m][2 * n + 1], q[m][0], q[m][1], q[m][2], q[m][3], k[2], k[3]);
                }
            }
            between(step, STEPS);
        }
    }

    // what is not products, of the tokens of a tile from the first on
    __device__ void change(const prefill_args & a, const prefill_place & at, const tile_number tile, const int first,
                           half_scores & s) const {
        if (a.cap > 0) {
            cap_scores(a, s);
        }
        if (tile.is_masked) {
            add_masks(a, at, tile_tokens(a, tile, TOKENS), first, s);
        }
    }

    __device__ static void cap_scores(const prefill_args & a, half_scores & s) {
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int n = 0; n < HALF / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    s[m][n][j] = a.cap * tanhf(s[m][n][j]);
                }
            }
        }
    }

    // what the masks of this lane's rows add
    __device__ void add_masks(const prefill_args & a, const prefill_place & at, const tile_tokens & tokens,
                              const int first_token, half_scores & s) const {
        const token_source & from = tokens.from;
#pragma unroll
        for (int i = 0; i < TILES * 2; ++i) {
            const int row = min(first_row + i * 8 + g, a.n_columns() - 1), query = a.by_group.quotient(row);
            const float slope = LOG2_E * slope_of(a, at.head * a.group + row - query * a.group);
            const half * mask = from.mask + at.stream * from.mask_stream + query * from.mask_query + tokens.first;
#pragma unroll
            for (int n = 0; n < HALF / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int token = first_token + n * 8 + 2 * t + j;
                    s[i / 2][n][i % 2 * 2 + j] += tokens.row(token) < 0 ? -INFINITY : slope * __half2float(mask[token]);
                }
            }
        }
    }

    // `most` follows scores only where they get far above it; `raised` is called with what all before comes to then
    template <typename RAISED>
    __device__ void raise_if_above(const half_scores & s, const RAISED & raised) {
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            float above[2] = { NO_SCORE, NO_SCORE };
#pragma unroll
            for (int n = 0; n < HALF / 8; ++n) {
                above[0] = fmaxf(above[0], fmaxf(s[m][n][0], s[m][n][1]));
                above[1] = fmaxf(above[1], fmaxf(s[m][n][2], s[m][n][3]));
            }
            if (__any_sync(0xffffffff, above[0] > most[m][0] + MOST_ABOVE || above[1] > most[m][1] + MOST_ABOVE)) {
                float factor[2];
                raise(m, above, factor);
                raised(m, factor);
            }
        }
    }

    // Scores become weights, 2 to the power of what they are above `most`: the i-th of n parts of them.
    __device__ void weigh(const half_scores & s, half_weights & p, const int i, const int n_parts) {
#pragma unroll
        for (int unit = i * UNITS / n_parts; unit < (i + 1) * UNITS / n_parts; ++unit) {
            const int m = unit / (HALF / 8), n = unit % (HALF / 8);
            float x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[j] = power_of_two(s[m][n][j] - most[m][j / 2]);
            }
            sum[m][0] += x[0] + x[1];
            sum[m][1] += x[2] + x[3];
            p[m][n / 2][n % 2 * 2] = pair_of(x[0], x[1]);
            p[m][n / 2][n % 2 * 2 + 1] = pair_of(x[2], x[3]);
        }
    }

    __device__ static void scale(pair (&p)[HALF / 16][4], const float (&factor)[2]) {
#pragma unroll
        for (int k = 0; k < HALF / 16; ++k) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                p[k][j] = times(p[k][j], pair_of(factor[j % 2], factor[j % 2]));
            }
        }
    }

    // values of half a tile by weights; `between` as above
    template <typename BETWEEN>
    __device__ void add_values(const half_weights & p, const uint32_t of_tile, const BETWEEN & between) {
        constexpr int STEPS = DV / 16;
#pragma unroll
        for (int k = 0; k < HALF / 16; ++k) {
#pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                pair v[4];
                load_transposed(v, of_tile + k * 16 * sizes::PITCH_V + i * 32);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_product(values[m][2 * i], p[m][k][0], p[m][k][1], p[m][k][2], p[m][k][3], v[0], v[1]);
                    add_product(values[m][2 * i + 1], p[m][k][0], p[m][k][1], p[m][k][2], p[m][k][3], v[2], v[3]);
                }
                between(k * STEPS + i, HALF / 16 * STEPS);
            }
        }
    }

    __device__ static float slope_of(const prefill_args & a, const int head) {
        if (a.max_bias == 0) {
            return 1;
        }
        const int n_head = a.n_head_kv * a.group, n_log2 = 1 << (31 - __clz(n_head));
        const float exponent = head < n_log2 ? (head + 1) / (float)n_log2 : (2 * (head - n_log2) + 1) / (2.0f * n_log2);
        return exp2f(-a.max_bias * exponent);
    }

    __device__ void raise(const int m, float (&above)[2], float (&factor)[2]) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            above[j] = fmaxf(above[j], __shfl_xor_sync(0xffffffff, above[j], 1));
            above[j] = fmaxf(above[j], __shfl_xor_sync(0xffffffff, above[j], 2));
            const float next = fmaxf(above[j] - HEADROOM, most[m][j]);
            factor[j] = power_of_two(most[m][j] - next);
            most[m][j] = next;
            sum[m][j] *= factor[j];
#pragma unroll
            for (int i = 0; i < DV / 8; ++i) {
                values[m][i][2 * j] *= factor[j];
                values[m][i][2 * j + 1] *= factor[j];
            }
        }
    }

    // Two lanes have the values 4t, 4t + 2 and 4t + 1, 4t + 3 of 32: they exchange one.
    __device__ void store_row(const int i, const bool is_there, float * to) const {
        const bool is_odd = t % 2 != 0;
#pragma unroll
        for (int k = 0; k < DV / 8; ++k) {
            const float first = values[i / 2][k][i % 2 * 2], last = values[i / 2][k][i % 2 * 2 + 1];
            const float other = __shfl_xor_sync(0xffffffff, is_odd ? first : last, 1);
            if (is_there) {
                *(float2 *)(to + k / 4 * 32 + t / 2 * 16 + k % 4 * 4 + (is_odd ? 2 : 0)) =
                        is_odd ? make_float2(other, last) : make_float2(first, other);
            }
        }
    }
};

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
        }
        return tile;
    }

    __device__ void put(const tile_number tile, const int i) const {
        wait_for_phase(barrier(i), i / 2 % 2);
        put_tile<DK, DV>(a, at, mine, tile_tokens(a, tile, sizes::TOKENS), shared + sizes::RAW_AT + i % 2 * a.raw_bytes,
                         shared + sizes::TILES_AT + i % 2 * sizes::TILE_BYTES);
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
    put_rows<DK, sizes::ROWS, sizes::PITCH_K>(a, at, shared);
    row_sums<DK, DV> sums(at, steps.shared_at);
    const bool is_late = at.warp >= PREFILL_WARPS / 2;
#pragma unroll 1
    for (int i = 0;; ++i) {
        tile_number ahead = NO_TILE;
        const auto wait_and_bring = [&] {
            wait_for_warps(PREFILL_WARPS);
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
