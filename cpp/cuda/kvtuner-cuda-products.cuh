// Products of cached keys with queries, and of weights with cached values, in registers.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-cuda-fragments.cuh"
#include "kvtuner-cuda-launch.cuh"

namespace kvtuner::cuda {

constexpr float RAW_UNIT = 1 << 24;  // of codes as denormal halves

// queries as a factor of products, for each step of 16 values and each tile: in registers, or where they are too many,
// in shared memory
template <int DK, int TILES, bool ARE_KEPT = has_queries_in_registers(DK, TILES)>
struct query_parts {
    static constexpr int STEPS = DK / 16;
    static constexpr bool IN_REGISTERS = ARE_KEPT;
    static constexpr int N = IN_REGISTERS ? STEPS * TILES : 1;
    uint2 kept[N];
    const uint2 * shared;  // [steps, tiles, lanes]
    const float4 * sums;   // [32 values, exact rows, tiles, t]: what codes as they are come to too much, negative

    __device__ query_parts(const uint2 * of_head, const float4 * sums, const int lane)
        : shared(of_head + lane), sums(sums + lane % 4) {
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                kept[i] = shared[i * LANES];
            }
        }
    }

    // as they lie for a lane
    __device__ query_parts(const uint2 * shared, const float4 * sums) : shared(shared), sums(sums) {
    }

    // makes less of those that codes in place are too large for
    __device__ void shrink(const float high) {
        const pair factor = pair_of(1 / high, 1 / high);
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int step = 1; step < STEPS; step += 2) {
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    uint2 & q = kept[step * TILES + tile];
                    q = make_uint2(times(q.x, factor), times(q.y, factor));
                }
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
        return sums[((2 * part + (IS_EXACT ? 1 : 0)) * TILES + tile) * 4];
    }

    // those of values N * i to N * i + N - 1 of a head
    template <int N>
    __device__ query_parts<N, TILES, false> strip(const int i) const {
        return { shared + i * (N / 16 * TILES * LANES), sums + i * (N / AT_ONCE * 2 * TILES * 4) };
    }
};

template <int TILES>
using scores = float[TILES][4];  // of tokens g and g + 8, columns 2t and 2t + 1

// c += codes of tokens g and g + 8 times queries
template <ggml_type T, form FORM, int DK, int TILES, bool ARE_KEPT>
__device__ void add_codes(const char * key, const char * key_8, const int part,
                          const query_parts<DK, TILES, ARE_KEPT> & q, const int t, scores<TILES> & c) {
    using type = cached<T>;
    constexpr bool WORDS = DK / type::SIZE * type::BYTES % 4 == 0;
    pair x[4], y[4];
    key_part<T, WORDS, FORM>(key, part, t, x);
    key_part<T, WORDS, FORM>(key_8, part, t, y);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        const uint2 first = q.at(2 * part, tile), second = q.at(2 * part + 1, tile);
        add_product(c[tile], x[0], y[0], x[1], y[1], first.x, first.y);
        add_product(c[tile], x[2], y[2], x[3], y[3], second.x, second.y);
    }
}

// s += keys of tokens g and g + 8 times queries
template <ggml_type T, bool IS_EXACT, int DK, int TILES, bool ARE_KEPT>
__device__ void add_scores(const char * key, const char * key_8, const query_parts<DK, TILES, ARE_KEPT> & q,
                           const int t, scores<TILES> & s) {
    using type = cached<T>;
    constexpr form FORM = ARE_KEPT && !IS_EXACT ? form::IN_PLACE : form::RAW;
    if constexpr (T == GGML_TYPE_F16) {
#pragma unroll
        for (int part = 0; part < DK / AT_ONCE; ++part) {
            add_codes<T, FORM>(key, key_8, part, q, t, s);
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
                add_codes<T, FORM>(key, key_8, part, q, t, c);
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

// products of halves, of which queries are as the cache's keys need them
template <int DK, int TILES>
__device__ void add_center_scores(const char * center, const char * center_8, const query_parts<DK, TILES> & q,
                                  const int t, const float high, scores<TILES> & s) {
    scores<TILES> odd = {};
#pragma unroll
    for (int part = 0; part < DK / AT_ONCE; ++part) {
        pair x[4], y[4];
        key_part<GGML_TYPE_F16, true, form::RAW>(center, part, t, x);
        key_part<GGML_TYPE_F16, true, form::RAW>(center_8, part, t, y);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const uint2 first = q.at(2 * part, tile), second = q.at(2 * part + 1, tile);
            add_product(s[tile], x[0], y[0], x[1], y[1], first.x, first.y);
            add_product(odd[tile], x[2], y[2], x[3], y[3], second.x, second.y);
        }
    }
    const float factor = query_parts<DK, TILES>::IN_REGISTERS ? high : 1;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            s[tile][j] += factor * odd[tile][j];
        }
    }
}

template <int TILES>
using weights = pair[TILES][2];  // of tokens 2t, 2t + 1 and 8 more, column g

// Sums of values by weights. Where there are registers for it, codes of the cache are taken as they are, between
// `enter` and `leave`, and beside them weights are summed, by which their offset is taken off.
template <int DV, int TILES>
struct outputs {
    static constexpr bool IS_RAW = DV * TILES <= 128;
    static constexpr form FORM = IS_RAW ? form::IN_PLACE : form::EXACT;
    float values[DV / 16][TILES][4];                  // 2g and 2g + 1, columns 2t and 2t + 1: both of 2g first
    float ones[IS_RAW ? DV / AT_ONCE : 1][TILES][4];  // times scales of 32 values: columns 2t and 2t + 1, twice

    __device__ outputs() {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            scale(tile, 0, 0, /*is_empty =*/true);
        }
    }

    // sums of columns 2t and 2t + 1 times these
    __device__ void scale(const int tile, const float factor_0, const float factor_1, const bool is_empty = false) {
        const auto each = [&](float(&x)[4]) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[j] = is_empty ? 0 : x[j] * (j % 2 == 0 ? factor_0 : factor_1);
            }
        };
#pragma unroll
        for (int i = 0; i < DV / 16; ++i) {
            each(values[i][tile]);
        }
        if constexpr (IS_RAW) {
#pragma unroll
            for (int i = 0; i < DV / AT_ONCE; ++i) {
                each(ones[i][tile]);
            }
        }
    }

    // x of each sum times `unit`, or those of the last 16 of 32 values `high` times that, less `offset` of the ones
    __device__ void convert(const float unit, const float high, const float offset) {
#pragma unroll
        for (int i = 0; i < DV / 16; ++i) {
            const float factor = i % 2 == 0 ? unit : unit * high;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    values[i][tile][j] = values[i][tile][j] * factor - offset * ones[IS_RAW ? i / 2 : 0][tile][j];
                }
            }
        }
    }

    __device__ void enter(const attention_args & a) {
        if (IS_RAW && a.offset_v > 0) {
            convert(1 / RAW_UNIT, a.high_v, 0);
        }
    }

    __device__ void leave(const attention_args & a) {
        if (IS_RAW && a.offset_v > 0) {
            convert(RAW_UNIT, 1 / a.high_v, a.offset_v);
        }
    }
};

// o += values of tokens 2t, 2t + 1 and 8 more, whose heads these are, times weights
template <ggml_type T, form FORM, int DV, int TILES>
__device__ void add_values(const char * const (&head)[4], const weights<TILES> & p, const int g,
                           outputs<DV, TILES> & o) {
    using type = cached<T>;
    constexpr pair ONES = 0x3c003c00;
    if constexpr (DV % type::SIZE == 0) {
        constexpr int PARTS = type::SIZE / AT_ONCE;
#pragma unroll
        for (int block = 0; block < DV / type::SIZE; ++block) {
            pair scale = ONES, scale_8 = ONES;
            if constexpr (type::HAS_SCALE) {
                scale = load_both(head[0] + block * type::BYTES, head[1] + block * type::BYTES);
                scale_8 = load_both(head[2] + block * type::BYTES, head[3] + block * type::BYTES);
            }
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const int i = block * PARTS + part;
                pair x[4], y[4];
                value_part<T, FORM>(head[0], head[1], i, g, x);
                value_part<T, FORM>(head[2], head[3], i, g, y);
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    const pair w = type::HAS_SCALE ? times(p[tile][0], scale) : p[tile][0];
                    const pair w_8 = type::HAS_SCALE ? times(p[tile][1], scale_8) : p[tile][1];
                    add_product(o.values[2 * i][tile], x[0], x[1], y[0], y[1], w, w_8);
                    add_product(o.values[2 * i + 1][tile], x[2], x[3], y[2], y[3], w, w_8);
                    if constexpr (type::HAS_SCALE && FORM != form::EXACT) {
                        add_product(o.ones[i][tile], ONES, ONES, ONES, ONES, w, w_8);
                    }
                }
            }
        }
    }
}

// `call` with the type of a cache
#define KVTUNER_CASE(NAME, call) \
    case cache_kind::NAME:       \
        call(GGML_TYPE_##NAME);  \
        break;
#define KVTUNER_FOR_KIND(kind, call) \
    switch (kind) {                  \
        KVTUNER_CASE(F16, call)      \
        KVTUNER_CASE(Q8_0, call)     \
        KVTUNER_CASE(Q5_0, call)     \
        KVTUNER_CASE(Q4_0, call)     \
        KVTUNER_CASE(IQ4_NL, call)   \
        KVTUNER_CASE(Q3_NL, call)    \
        KVTUNER_CASE(Q2_NL, call)    \
        default:                     \
            __builtin_unreachable(); \
    }

// the same with that of exact rows
#define KVTUNER_FOR_EXACT_KIND(kind, call) \
    if (kind == cache_kind::F16) {         \
        call(GGML_TYPE_F16);               \
    } else {                               \
        call(GGML_TYPE_Q8_0);              \
    }

// that of the cache or of exact rows
#define KVTUNER_FOR_KIND_OF(is_exact, kind, call) \
    if constexpr (is_exact) {                     \
        KVTUNER_FOR_EXACT_KIND(kind, call)        \
    } else {                                      \
        KVTUNER_FOR_KIND(kind, call)              \
    }

}  // namespace kvtuner::cuda
