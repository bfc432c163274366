// Attention of few queries: every quantized key and value is read once for all query heads that share it, and becomes a
// number in the registers that the tensor cores read.
//
// A warp has 16 tokens of one KV head at a time. Queries are columns, 8 to a tile. Tokens come in lots, which all warps
// of a block read from shared memory while the next ones are on their way. The sums of a block are parts that a second
// kernel adds up.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-fragments.cuh"
#include "kvtuner-cuda-launch.cuh"
#include "kvtuner-cuda-merge.cuh"

namespace kvtuner::cuda {

constexpr int LANES = 32;
constexpr int COLUMNS = 8;  // of a tile
constexpr int TOKENS = 16;  // of a warp
constexpr float LOG2_E = 1.44269504f;
constexpr float NO_SCORE = -1e30f;
constexpr float HEADROOM = 8, MOST_ABOVE = 12;  // weights are 2^HEADROOM where they begin, and halves
constexpr float RAW_UNIT = 1 << 24;             // of codes as denormal halves

// queries as a factor of products, for each step of 16 values and each tile: in registers, or where they are too many,
// in shared memory
template <int DK, int TILES>
struct query_parts {
    static constexpr int STEPS = DK / 16;
    static constexpr bool IN_REGISTERS = has_queries_in_registers(DK, TILES);
    static constexpr int N = IN_REGISTERS ? STEPS * TILES : 1;
    uint2 kept[N];
    const uint2 * shared;  // [steps, tiles, lanes]
    const float4 * sums;   // [exact rows, 32 values, tiles, t]: what codes as they are come to too much, negative

    __device__ query_parts(const uint2 * of_head, const float4 * sums, const int lane)
        : shared(of_head + lane), sums(sums + lane % 4) {
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                kept[i] = shared[i * LANES];
            }
        }
    }

    __device__ uint2 at(const int step, const int tile) const {
        if constexpr (IN_REGISTERS) {
            return kept[step * TILES + tile];
        } else {
            return shared[(step * TILES + tile) * LANES];
        }
    }

    template <bool IS_EXACT>
    __device__ float4 too_much(const int part, const int tile) const {
        return sums[((IS_EXACT ? DK / AT_ONCE : 0) + part) * TILES * 4 + tile * 4];
    }
};

template <int TILES>
using scores = float[TILES][4];  // of tokens g and g + 8, columns 2t and 2t + 1

// c += codes of tokens g and g + 8 times queries
template <ggml_type T, int DK, int TILES>
__device__ void add_codes(const char * key, const char * key_8, const int part, const query_parts<DK, TILES> & q,
                          const int t, scores<TILES> & c) {
    using type = cached<T>;
    constexpr bool WORDS = DK / type::SIZE * type::BYTES % 4 == 0;
    pair x[4], y[4];
    key_part<T, WORDS, form::RAW>(key, part, t, x);
    key_part<T, WORDS, form::RAW>(key_8, part, t, y);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        const uint2 first = q.at(2 * part, tile), second = q.at(2 * part + 1, tile);
        add_product(c[tile], x[0], y[0], x[1], y[1], first.x, first.y);
        add_product(c[tile], x[2], y[2], x[3], y[3], second.x, second.y);
    }
}

// s += keys of tokens g and g + 8 times queries
template <ggml_type T, bool IS_EXACT, int DK, int TILES>
__device__ void add_scores(const char * key, const char * key_8, const query_parts<DK, TILES> & q, const int t,
                           scores<TILES> & s) {
    using type = cached<T>;
    if constexpr (T == GGML_TYPE_F16) {
#pragma unroll
        for (int part = 0; part < DK / AT_ONCE; ++part) {
            add_codes<T>(key, key_8, part, q, t, s);
        }
    } else if constexpr (DK % type::SIZE == 0) {
        constexpr int PARTS = type::SIZE / AT_ONCE;
        scores<TILES> total = {};
#pragma unroll
        for (int block = 0; block < DK / type::SIZE; ++block) {
            scores<TILES> c;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                float4 too_much = q.template too_much<IS_EXACT>(block * PARTS, tile);
                if constexpr (PARTS == 2) {
                    const float4 more = q.template too_much<IS_EXACT>(block * PARTS + 1, tile);
                    too_much = make_float4(too_much.x + more.x, too_much.y + more.y, 0, 0);
                    too_much.z = too_much.x;
                    too_much.w = too_much.y;
                }
                c[tile][0] = too_much.x;
                c[tile][1] = too_much.y;
                c[tile][2] = too_much.z;
                c[tile][3] = too_much.w;
            }
#pragma unroll
            for (int part = block * PARTS; part < (block + 1) * PARTS; ++part) {
                add_codes<T>(key, key_8, part, q, t, c);
            }
            const float d = float_of(load_16(key + block * type::BYTES));
            const float d_8 = float_of(load_16(key_8 + block * type::BYTES));
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                total[tile][0] += d * c[tile][0];
                total[tile][1] += d * c[tile][1];
                total[tile][2] += d_8 * c[tile][2];
                total[tile][3] += d_8 * c[tile][3];
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                s[tile][j] += total[tile][j] * RAW_UNIT;
            }
        }
    }
}

template <int DV, int TILES>
using outputs =
        float[DV / 16][TILES][4];  // of values 2g and 2g + 1, columns 2t and 2t + 1: both of the first value first

template <int TILES>
using weights = pair[TILES][2];  // of tokens 2t, 2t + 1 and 8 more, column g

// o += values of tokens 2t, 2t + 1 and 8 more, whose heads these are, times weights
template <ggml_type T, int DV, int TILES>
__device__ void add_values(const char * const (&head)[4], const weights<TILES> & p, const int g,
                           outputs<DV, TILES> & o) {
    using type = cached<T>;
    if constexpr (DV % type::SIZE == 0) {
        constexpr int PARTS = type::SIZE / AT_ONCE;
#pragma unroll
        for (int block = 0; block < DV / type::SIZE; ++block) {
            pair scale = 0, scale_8 = 0;
            if constexpr (type::HAS_SCALE) {
                scale = load_both(head[0] + block * type::BYTES, head[1] + block * type::BYTES);
                scale_8 = load_both(head[2] + block * type::BYTES, head[3] + block * type::BYTES);
            }
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const int i = block * PARTS + part;
                pair x[4], y[4];
                value_part<T>(head[0], head[1], i, g, x);
                value_part<T>(head[2], head[3], i, g, y);
                if constexpr (type::HAS_SCALE) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        x[k] = times(x[k], scale);
                        y[k] = times(y[k], scale_8);
                    }
                }
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    add_product(o[2 * i][tile], x[0], x[1], y[0], y[1], p[tile][0], p[tile][1]);
                    add_product(o[2 * i + 1][tile], x[2], x[3], y[2], y[3], p[tile][0], p[tile][1]);
                }
            }
        }
    }
}

// `call` with the type of a cache
#define KVTUNER_CASE(T, call) \
    case T:                   \
        call(T);              \
        break;
#define KVTUNER_FOR_TYPE(type, call)         \
    switch (type) {                          \
        KVTUNER_CASE(GGML_TYPE_F16, call)    \
        KVTUNER_CASE(GGML_TYPE_Q8_0, call)   \
        KVTUNER_CASE(GGML_TYPE_Q5_0, call)   \
        KVTUNER_CASE(GGML_TYPE_Q4_0, call)   \
        KVTUNER_CASE(GGML_TYPE_IQ4_NL, call) \
        KVTUNER_CASE(GGML_TYPE_Q3_NL, call)  \
        KVTUNER_CASE(GGML_TYPE_Q2_NL, call)  \
    }

// the same with that of exact rows
#define KVTUNER_FOR_EXACT_TYPE(type, call) \
    switch (type) {                        \
        KVTUNER_CASE(GGML_TYPE_F16, call)  \
        KVTUNER_CASE(GGML_TYPE_Q8_0, call) \
    }

// 16 tokens of a head, wherever they lie
struct token_rows {
    const char *key, *key_8;  // of tokens g and g + 8
    const char * value[4];    // of tokens 2t, 2t + 1 and 8 more
    int type_k, type_v;
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
    const query_parts<DK, TILES> q;
    const int lane, g, t;
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
#pragma unroll
            for (int i = 0; i < DV / 16; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    o[i][tile][j] = 0;
                }
            }
        }
    }

    __device__ void set_columns(const attention_args & a, const int head_kv, const int first) {
        const int n_head = a.n_head_kv * a.group;
        const int n_log2 = 1 << (31 - __clz(n_head));
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int column = min(first + tile * COLUMNS + 2 * t + j, a.n_columns() - 1);
                query[tile][j] = a.query_of(column);
                if (a.max_bias > 0) {
                    const int head = head_kv * a.group + column - query[tile][j] * a.group;
                    const float exponent =
                            head < n_log2 ? (head + 1) / (float)n_log2 : (2 * (head - n_log2) + 1) / (2.0f * n_log2);
                    slope[tile][j] = LOG2_E * exp2f(-a.max_bias * exponent);
                }
            }
        }
    }

    __device__ const char * center_of(const attention_args & a, const int head_kv, const int block) const {
        return (const char *)(a.centers + block * a.centers_block + head_kv * DK);
    }

    // The keys of a block of positions are less of its center. What that adds to scores is kept while all 16 tokens are
    // of the same block.
    __device__ void add_centers(const attention_args & a, const int head_kv, const token_marks & marks,
                                scores<TILES> & s) {
        const int first = __shfl_sync(0xffffffff, marks.block, 0);
        const bool is_one = __all_sync(0xffffffff, marks.block == first && marks.block_8 == first);
        if (!is_one || first != center_block) {
            scores<TILES> found = {};
            add_scores<GGML_TYPE_F16, false, DK, TILES>(center_of(a, head_kv, marks.block),
                                                        center_of(a, head_kv, marks.block_8), q, t, found);
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

    __device__ float masked(const token_marks & marks, const int token, const int tile, const int j,
                            const float score) const {
        if (token < TOKENS / 2 ? marks.is_none : marks.is_none_8) {
            return -INFINITY;
        }
        const float bias = __half2float(marks.mask[query[tile][j] * marks.mask_query + token]);
        return bias > -INFINITY ? score + slope[tile][j] * bias : -INFINITY;
    }

    // Scores become weights, 2 to the power of what they are above `most`. It follows the scores only where they get
    // far above it.
    __device__ void weigh(scores<TILES> & s, weights<TILES> & p) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            float most_0 = fmaxf(s[tile][0], s[tile][2]), most_1 = fmaxf(s[tile][1], s[tile][3]);
            if (__any_sync(0xffffffff, most_0 > most[tile][0] + MOST_ABOVE || most_1 > most[tile][1] + MOST_ABOVE)) {
                raise(tile, most_0, most_1);
            }
            float x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[j] = power_of_two(s[tile][j] - most[tile][j % 2]);
            }
            sum[tile][0] += x[0] + x[2];
            sum[tile][1] += x[1] + x[3];
            p[tile][0] = transposed(pair_of(x[0], x[1]));
            p[tile][1] = transposed(pair_of(x[2], x[3]));
        }
    }

    __device__ void raise(const int tile, float most_0, float most_1) {
#pragma unroll
        for (int i = 4; i < LANES; i *= 2) {
            most_0 = fmaxf(most_0, __shfl_xor_sync(0xffffffff, most_0, i));
            most_1 = fmaxf(most_1, __shfl_xor_sync(0xffffffff, most_1, i));
        }
        const float next_0 = fmaxf(most_0 - HEADROOM, most[tile][0]), next_1 = fmaxf(most_1 - HEADROOM, most[tile][1]);
        const float factor_0 = power_of_two(most[tile][0] - next_0), factor_1 = power_of_two(most[tile][1] - next_1);
        most[tile][0] = next_0;
        most[tile][1] = next_1;
        sum[tile][0] *= factor_0;
        sum[tile][1] *= factor_1;
#pragma unroll
        for (int i = 0; i < DV / 16; ++i) {
            o[i][tile][0] *= factor_0;
            o[i][tile][1] *= factor_1;
            o[i][tile][2] *= factor_0;
            o[i][tile][3] *= factor_1;
        }
    }

    // IS_EXACT: these are exact rows, which have fewer types
    template <bool IS_EXACT>
    __device__ void add(const attention_args & a, const int head_kv, const token_rows & rows,
                        const token_marks & marks) {
        scores<TILES> s = {};
#define KVTUNER_SCORES(T) add_scores<T, IS_EXACT, DK, TILES>(rows.key, rows.key_8, q, t, s)
        if constexpr (IS_EXACT) {
            KVTUNER_FOR_EXACT_TYPE(rows.type_k, KVTUNER_SCORES)
        } else {
            KVTUNER_FOR_TYPE(rows.type_k, KVTUNER_SCORES)
        }
#undef KVTUNER_SCORES
        if (a.centers) {
            add_centers(a, head_kv, marks, s);
        }
        if (a.cap > 0) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    s[tile][j] = a.cap * tanhf(s[tile][j]);
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                s[tile][j] = masked(marks, g + j / 2 * 8, tile, j % 2, s[tile][j]);
            }
        }
        weights<TILES> p;
        weigh(s, p);
#define KVTUNER_VALUES(T) add_values<T, DV, TILES>(rows.value, p, g, o)
        if constexpr (IS_EXACT) {
            KVTUNER_FOR_EXACT_TYPE(rows.type_v, KVTUNER_VALUES)
        } else {
            KVTUNER_FOR_TYPE(rows.type_v, KVTUNER_VALUES)
        }
#undef KVTUNER_VALUES
    }

    // as sums of the columns from `first` on, of which `values` and `totals` have the first
    __device__ void store(const attention_args & a, const int first, float * values, float2 * totals) {
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
                float2 * to = (float2 *)(values + column * DV) + g;
#pragma unroll
                for (int i = 0; i < DV / 16; ++i) {
                    to[i * 8] = make_float2(o[i][tile][j], o[i][tile][j + 2]);
                }
            }
        }
    }
};

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
        all.put(a.parts + part * DV, lane);
        if (lane == 0) {
            a.sums[part] = make_float2(above, all.sum);
        }
    }
}

}  // namespace kvtuner::cuda
