// Scores and weights of a warp's rows, and sums of values by these weights: products of matrices in shared memory.
#pragma once

#include "kvtuner-cuda-prefill-walk.cuh"
#include "kvtuner-cuda-slope.cuh"
#include "kvtuner-cuda-warp.cuh"

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
            const float slope = slope_of(a, at.head * a.group + row - query * a.group);
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

}  // namespace kvtuner::cuda
