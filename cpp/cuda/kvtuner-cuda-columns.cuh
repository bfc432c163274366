// What a warp knows of its columns, and sums of them: weights of scores, and values by these weights.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-products.cuh"
#include "kvtuner-cuda-slope.cuh"

namespace kvtuner::cuda {

// 16 tokens of a head, wherever they lie, and perhaps the next 16, too
struct token_rows {
    const char *key, *key_8;  // of tokens g and g + 8
    const char * value[4];    // of tokens 2t, 2t + 1 and 8 more
    cache_kind kind_k, kind_v;
    int next_key, next_value;  // bytes to the same of the next 16
};

// What the masks of queries add for tokens g and g + 8, and their blocks of positions
struct token_marks {
    const half * mask;  // of the first query, token 0 of the 16
    int mask_query;     // halves
    bool is_none, is_none_8;
    int block, block_8;
};

// what a warp knows of its columns and has summed of them
template <int DK, int DV, int TILES>
struct column_sums {
    query_parts<DK, TILES> q;
    int lane, g, t;
    int query[TILES][2];
    float slope[TILES][2], most[TILES][2], sum[TILES][2];
    outputs<DV, TILES> o;
    int center_block = -1;  // of the scores below; negative for none
    float center_score[TILES][4];

    __device__ column_sums(const uint2 * q, const float4 * q_sums, const int lane)
        : q(q, q_sums, lane), lane(lane), g(lane / 4), t(lane % 4) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                query[tile][j] = 0;
                slope[tile][j] = LOG2_E;
                most[tile][j] = NO_SCORE;
                sum[tile][j] = 0;
            }
        }
    }

    __device__ void set_columns(const attention_args & a, const int head_kv, const int first) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int column = min(first + tile * COLUMNS + 2 * t + j, a.n_columns() - 1);
                query[tile][j] = a.query_of(column);
                if (a.max_bias > 0) {
                    slope[tile][j] = slope_of(a, head_kv * a.group + column - query[tile][j] * a.group);
                }
            }
        }
    }

    __device__ const char * center_of(const attention_args & a, const int head_kv, const int block) const {
        return (const char *)(a.centers + block * a.centers_block + head_kv * DK);
    }

    // The keys of a block of positions are less of its center. What that adds to scores is kept while all 16 tokens are
    // of the same block.
    template <bool IS_EXACT>
    __device__ void add_centers(const attention_args & a, const int head_kv, const token_marks & marks,
                                scores<TILES> & s) {
        const float high = IS_EXACT ? 1 : a.high_k;
        const int first = __shfl_sync(0xffffffff, marks.block, 0);
        const bool is_one = __all_sync(0xffffffff, marks.block == first && marks.block_8 == first);
        if (!is_one || first != center_block) {
            scores<TILES> found = {};
            add_center_scores(center_of(a, head_kv, marks.block), center_of(a, head_kv, marks.block_8), q, t, high,
                              found);
            center_block = is_one ? first : -1;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    center_score[tile][j] = found[tile][j];
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                s[tile][j] += center_score[tile][j];
            }
        }
    }

    // what the mask of the only query adds
    template <bool IS_EXACT>
    __device__ void add_mask(const token_marks & marks, scores<TILES> & s) const {
        const float more = LOG2_E * bias<IS_EXACT>(marks, 0, false), more_8 = LOG2_E * bias<IS_EXACT>(marks, 0, true);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                s[tile][j] += j < 2 ? more : more_8;
            }
        }
    }

    // what the mask of a query adds for token g, or g + 8
    template <bool IS_EXACT>
    __device__ float bias(const token_marks & marks, const int query, const bool is_8) const {
        if (IS_EXACT && (is_8 ? marks.is_none_8 : marks.is_none)) {
            return -INFINITY;
        }
        return __half2float(marks.mask[query * marks.mask_query + g + (is_8 ? 8 : 0)]);
    }

    __device__ static void cap_scores(const attention_args & a, scores<TILES> & s) {
        if (a.cap > 0) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    s[tile][j] = a.cap * tanhf(s[tile][j]);
                }
            }
        }
    }

    template <bool IS_EXACT>
    __device__ void add_masks(const attention_args & a, const token_marks & marks, scores<TILES> & s) const {
        const bool is_one = a.n_query == 1;
        const float first = bias<IS_EXACT>(marks, 0, false), first_8 = bias<IS_EXACT>(marks, 0, true);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float more = j < 2 ? first : first_8;
                if (!is_one) {
                    more = bias<IS_EXACT>(marks, query[tile][j % 2], j >= 2);
                }
                s[tile][j] += slope[tile][j % 2] * more;
            }
        }
    }

    // caps scores and adds what masks say
    template <bool IS_EXACT>
    __device__ void add_bias(const attention_args & a, const token_marks & marks, scores<TILES> & s) const {
        if (a.has_plain_scores) {
            add_mask<IS_EXACT>(marks, s);
        } else {
            cap_scores(a, s);
            add_masks<IS_EXACT>(a, marks, s);
        }
    }

    // Scores become weights, 2 to the power of what they are above `most`. It follows the scores only where they get
    // far above it.
    template <int UNITS>
    __device__ void weigh(scores<TILES> (&s)[UNITS], weights<TILES> (&p)[UNITS]) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            float most_0 = NO_SCORE, most_1 = NO_SCORE;
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                most_0 = fmaxf(most_0, fmaxf(s[u][tile][0], s[u][tile][2]));
                most_1 = fmaxf(most_1, fmaxf(s[u][tile][1], s[u][tile][3]));
            }
            if (__any_sync(0xffffffff, most_0 > most[tile][0] + MOST_ABOVE || most_1 > most[tile][1] + MOST_ABOVE)) {
                raise(tile, most_0, most_1);
            }
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                float x[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    x[j] = power_of_two(s[u][tile][j] - most[tile][j % 2]);
                }
                sum[tile][0] += x[0] + x[2];
                sum[tile][1] += x[1] + x[3];
                p[u][tile][0] = transposed(pair_of(x[0], x[1]));
                p[u][tile][1] = transposed(pair_of(x[2], x[3]));
            }
        }
    }

    __device__ void raise(const int tile, float most_0, float most_1) {
#pragma unroll
        for (int i = 4; i < LANES; i *= 2) {
            most_0 = fmaxf(most_0, __shfl_xor_sync(0xffffffff, most_0, i));
            most_1 = fmaxf(most_1, __shfl_xor_sync(0xffffffff, most_1, i));
        }
        const bool has_any = __any_sync(0xffffffff, fmaxf(most[tile][0], most[tile][1]) > NO_SCORE);
        const float next_0 = fmaxf(most_0 - HEADROOM, most[tile][0]), next_1 = fmaxf(most_1 - HEADROOM, most[tile][1]);
        const float factor_0 = power_of_two(most[tile][0] - next_0), factor_1 = power_of_two(most[tile][1] - next_1);
        most[tile][0] = next_0;
        most[tile][1] = next_1;
        sum[tile][0] *= factor_0;
        sum[tile][1] *= factor_1;
        if (has_any) {
            o.scale(tile, factor_0, factor_1);
        }
    }

    template <ggml_type T, bool IS_EXACT, int UNITS>
    __device__ void score(const token_rows & rows, scores<TILES> (&s)[UNITS]) const {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            add_scores<T, IS_EXACT, DK, TILES>(rows.key + u * rows.next_key, rows.key_8 + u * rows.next_key, q, t,
                                               s[u]);
        }
    }

    template <ggml_type T, bool IS_EXACT, int UNITS>
    __device__ void sum_values(const token_rows & rows, const weights<TILES> (&p)[UNITS]) {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const int next = u * rows.next_value;
            const char * const value[] = { rows.value[0] + next, rows.value[1] + next, rows.value[2] + next,
                                           rows.value[3] + next };
            add_values<T, IS_EXACT ? form::EXACT : outputs<DV, TILES>::FORM>(value, p[u], g, o);
        }
    }

    // 16 tokens for each of `marks`. IS_EXACT: these are exact rows, which have fewer types
    template <bool IS_EXACT, int UNITS>
    __device__ void add(const attention_args & a, const int head_kv, const token_rows & rows,
                        const token_marks (&marks)[UNITS]) {
        scores<TILES> s[UNITS] = {};
#define KVTUNER_SCORES(T) score<T, IS_EXACT>(rows, s)
        KVTUNER_FOR_KIND_OF(IS_EXACT, rows.kind_k, KVTUNER_SCORES)
#undef KVTUNER_SCORES
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            if (a.centers) {
                add_centers<IS_EXACT>(a, head_kv, marks[u], s[u]);
            }
            add_bias<IS_EXACT>(a, marks[u], s[u]);
        }
        weights<TILES> p[UNITS];
        weigh(s, p);
#define KVTUNER_VALUES(T) sum_values<T, IS_EXACT>(rows, p)
        KVTUNER_FOR_KIND_OF(IS_EXACT, rows.kind_v, KVTUNER_VALUES)
#undef KVTUNER_VALUES
    }

    // as sums of the columns from `first` on, of which `values` and `totals` have the first, rows so many floats apart
    __device__ void store(const attention_args & a, const int first, float * values, const int pitch, float2 * totals) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int column = tile * COLUMNS + 2 * t + j;
                float total = sum[tile][j];
#pragma unroll
                for (int i = 4; i < LANES; i *= 2) {
                    total += __shfl_xor_sync(0xffffffff, total, i);
                }
                if (first + column >= a.n_columns()) {
                    continue;
                }
                if (g == 0) {
                    totals[column] = make_float2(most[tile][j], total);
                }
                float2 * to = (float2 *)(values + column * pitch) + g;
#pragma unroll
                for (int i = 0; i < DV / 16; ++i) {
                    to[i * 8] = make_float2(o.values[i][tile][j], o.values[i][tile][j + 2]);
                }
            }
        }
    }
};

}  // namespace kvtuner::cuda
