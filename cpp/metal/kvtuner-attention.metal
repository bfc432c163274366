// Attention of few queries over caches of any two types: each key and value becomes numbers once for all query heads
// that share it, and each simdgroup has a run of tokens of its own.
//
// Queries are columns, C of them at a time: those of the query heads of a KV head for one query, then those for the
// next. A lane has some values of each column, and of 32 scores of tokens and columns one, so that weights are found
// once. LANES lanes have a token: where a row is short, half of them, and the halves of a simdgroup have other tokens.
#include "common.h"
#include "dequantize.h"
#include "kvtuner-metal-quads.h"

constant short FC_kvtuner_attention_kind_k       [[function_constant(FC_KVTUNER_ATTENTION + 0)]];
constant short FC_kvtuner_attention_kind_v       [[function_constant(FC_KVTUNER_ATTENTION + 1)]];
constant short FC_kvtuner_attention_exact_kind_k [[function_constant(FC_KVTUNER_ATTENTION + 2)]];
constant short FC_kvtuner_attention_exact_kind_v [[function_constant(FC_KVTUNER_ATTENTION + 3)]];
constant bool  FC_kvtuner_attention_has_mask     [[function_constant(FC_KVTUNER_ATTENTION + 4)]];
constant bool  FC_kvtuner_attention_has_sinks    [[function_constant(FC_KVTUNER_ATTENTION + 5)]];
constant bool  FC_kvtuner_attention_has_exact    [[function_constant(FC_KVTUNER_ATTENTION + 6)]];
constant bool  FC_kvtuner_attention_has_centers  [[function_constant(FC_KVTUNER_ATTENTION + 7)]];
constant short FC_kvtuner_attention_parts        [[function_constant(FC_KVTUNER_ATTENTION + 8)]];
constant short FC_kvtuner_attention_simdgroups   [[function_constant(FC_KVTUNER_ATTENTION + 9)]];

#define KVTUNER_SCORES 8  // that lanes add up at once

// lanes that have a row of so many values, and quads of four values that each has of it
#define KVTUNER_LANES(DK) ((DK) % 128 == 64 ? 16 : 32)
#define KVTUNER_QUADS(D, LANES) (((D)/4 + (LANES) - 1)/(LANES))

// where a lane is: of those that have its token, and the first of them
struct kvtuner_lane {
    short all, mine, first;
};

// Tokens of one head, in order from `first` on, or in the rows that lanes say.
struct kvtuner_rows {
    device const char * data;
    uint64_t stride;
    short kind;
    bool in_order;
    int first, last;
    int row;  // of the lane's token, where rows are not in order
};

template <short LANES, short C>
static inline device const char * kvtuner_row(thread const kvtuner_rows & rows, kvtuner_lane lane, short i) {
    if (rows.in_order) {
        return rows.data + min(rows.first + lane.first/C + i, rows.last)*rows.stride;
    }
    return rows.data + simd_shuffle(rows.row, lane.first + i*C)*rows.stride;
}

// Adds up KVTUNER_SCORES sums of all lanes that have a token: a lane gets the sum with the number of its last bits.
template <short LANES>
static inline float kvtuner_add_up(thread float * sums, short lane) {
    FOR_UNROLL (short n = KVTUNER_SCORES/2; n > 0; n /= 2) {
        const bool upper = (lane & n) != 0;
        FOR_UNROLL (short i = 0; i < n; ++i) {
            const float kept = upper ? sums[i + n] : sums[i];
            const float given = upper ? sums[i] : sums[i + n];
            sums[i] = kept + simd_shuffle_xor(given, n);
        }
    }
    FOR_UNROLL (short n = KVTUNER_SCORES; n < LANES; n *= 2) {
        sums[0] += simd_shuffle_xor(sums[0], n);
    }
    return sums[0];
}

// the lane's product of a key and a column's query: token lane/C, column lane%C
template <short DK, short LANES, short C>
static inline float kvtuner_products(thread const kvtuner_rows & keys, thread const half4 * q, kvtuner_lane lane) {
    constexpr short QUADS = KVTUNER_QUADS(DK, LANES);
    constexpr short TOKENS = KVTUNER_SCORES/C;
    float product = 0.0f;
    for (short chunk = 0; chunk < LANES/KVTUNER_SCORES; ++chunk) {
        float sums[KVTUNER_SCORES];
        FOR_UNROLL (short t = 0; t < TOKENS; ++t) {
            device const char * row = kvtuner_row<LANES, C>(keys, lane, chunk*TOKENS + t);
            FOR_UNROLL (short c = 0; c < C; ++c) {
                sums[t*C + c] = 0.0f;
            }
            FOR_UNROLL (short i = 0; i < QUADS; ++i) {
                const short quad = i*LANES + lane.mine;
                if (quad < DK/4) {
                    const float4 x = kvtuner_quad(keys.kind, row, quad);
                    FOR_UNROLL (short c = 0; c < C; ++c) {
                        sums[t*C + c] += dot(x, float4(q[c*QUADS + i]));
                    }
                }
            }
        }
        const float sum = kvtuner_add_up<LANES>(sums, lane.all);
        product = lane.mine/KVTUNER_SCORES == chunk ? sum : product;
    }
    return product;
}

// adds values by the weights that lanes have
template <short DV, short LANES, short C>
static inline void kvtuner_add_values(thread const kvtuner_rows & values, thread float4 * o, float weight,
                                      kvtuner_lane lane) {
    constexpr short QUADS = KVTUNER_QUADS(DV, LANES);
    constexpr short TOKENS = KVTUNER_SCORES/C;
    for (short chunk = 0; chunk < LANES/KVTUNER_SCORES; ++chunk) {
        FOR_UNROLL (short t = 0; t < TOKENS; ++t) {
            device const char * row = kvtuner_row<LANES, C>(values, lane, chunk*TOKENS + t);
            float weights[C];
            FOR_UNROLL (short c = 0; c < C; ++c) {
                weights[c] = simd_shuffle(weight, lane.first + (chunk*TOKENS + t)*C + c);
            }
            FOR_UNROLL (short i = 0; i < QUADS; ++i) {
                const short quad = i*LANES + lane.mine;
                if (quad < DV/4) {
                    const float4 x = kvtuner_quad(values.kind, row, quad);
                    FOR_UNROLL (short c = 0; c < C; ++c) {
                        o[c*QUADS + i] += x*weights[c];
                    }
                }
            }
        }
    }
}

// what a lane knows of its column, and what it has summed
struct kvtuner_column {
    bool is_one;  // of the problem; others fill up to C
    float slope;  // of ALiBi
    float most, sum;
    int center_block;  // whose score is known; negative: none
    float center_score;
};

// tokens of the cache, or those that have rows of their own, as a lane's column sees them
struct kvtuner_source {
    kvtuner_rows keys, values;
    device const half * mask;   // of the column's query
    device const int * rows;    // of each token; null: in order
    device const int * blocks;  // of positions, of each token
    int n;
};

// the score of the center of the block of positions that the lane's token is of
template <short DK, short LANES, short C>
static inline float kvtuner_center_score(device const char * centers, uint64_t stride, int block, thread const half4 * q,
                                         thread kvtuner_column & column, kvtuner_lane lane) {
    const int least = simd_min(block);
    const bool is_one_block = least == simd_max(block);
    if (!is_one_block || least != column.center_block) {
        const kvtuner_rows rows = { centers, stride, KVTUNER_METAL_F16, false, 0, 0, block };
        column.center_score = kvtuner_products<DK, LANES, C>(rows, q, lane);
        column.center_block = is_one_block ? least : -1;
    }
    return column.center_score;
}

// a new largest score of the lane's column: what was summed counts less
template <short DV, short LANES, short C>
static inline void kvtuner_raise(float most, thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane) {
    constexpr short QUADS = KVTUNER_QUADS(DV, LANES);
    if (simd_max(most - column.most) > 0.0f) {
        const float factor = exp(column.most - most);
        column.sum *= factor;
        column.most = most;
        FOR_UNROLL (short c = 0; c < C; ++c) {
            const float of_column = simd_shuffle(factor, lane.first + c);
            FOR_UNROLL (short i = 0; i < QUADS; ++i) {
                o[c*QUADS + i] *= of_column;
            }
        }
    }
}

// steps [begin, end) of 32/C tokens each
template <short DK, short DV, short LANES, short C>
static inline void kvtuner_attend(constant kvtuner_metal_attention_args & args, thread kvtuner_source & from,
                                  device const char * centers, int begin, int end, thread const half4 * q,
                                  thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane) {
    for (int step = begin; step < end; ++step) {
        const int first = step*(N_SIMDWIDTH/C), token = first + lane.all/C;
        const int inside = min(token, from.n - 1);
        const int row = from.keys.in_order ? inside : from.rows[inside];
        float mask = 0.0f;
        if (!column.is_one || token >= from.n || row < 0) {
            mask = KVTUNER_METAL_UNSEEN;
        } else if (FC_kvtuner_attention_has_mask) {
            mask = from.mask[token];
        }
        if (simd_max(mask) <= KVTUNER_METAL_UNSEEN) {
            continue;
        }
        from.keys.first = from.values.first = first;
        from.keys.row = from.values.row = max(row, 0);
        float score = kvtuner_products<DK, LANES, C>(from.keys, q, lane);
        if (FC_kvtuner_attention_has_centers) {
            const int block = row < 0 ? 0 : from.blocks[inside];
            score += kvtuner_center_score<DK, LANES, C>(centers, args.center_block, block, q, column, lane);
        }
        score *= args.scale;
        if (args.cap != 0.0f) {
            score = args.cap*precise::tanh(score);
        }
        const bool is_seen = mask > KVTUNER_METAL_UNSEEN;
        score += column.slope*mask;
        float most = is_seen ? max(score, column.most) : column.most;
        FOR_UNROLL (short n = C; n < N_SIMDWIDTH; n *= 2) {
            most = max(most, simd_shuffle_xor(most, n));
        }
        kvtuner_raise<DV, LANES, C>(most, o, column, lane);
        const float weight = is_seen ? exp(score - column.most) : 0.0f;
        column.sum += weight;
        kvtuner_add_values<DV, LANES, C>(from.values, o, weight, lane);
    }
}

static inline float kvtuner_slope(constant kvtuner_metal_attention_args & args, int head) {
    if (args.max_bias == 0.0f) {
        return 1.0f;
    }
    int n_log2 = 1;
    while (2*n_log2 <= args.n_head) {
        n_log2 *= 2;
    }
    const float exponent = head < n_log2 ? (head + 1.0f)/n_log2 : (2*(head - n_log2) + 1)/(2.0f*n_log2);
    return exp2(-args.max_bias*exponent);
}

// where the result of a column goes
struct kvtuner_place {
    int head, query;
};

static inline kvtuner_place kvtuner_place_of(constant kvtuner_metal_attention_args & args, int head_kv, int column) {
    const int group = args.n_head/args.n_head_kv;
    return { head_kv*group + column%group, column/group };
}

// Sums of all simdgroups of a threadgroup, to the result, or as one of the parts that upstream's kernel adds up.
template <short DV, short C>
static inline void kvtuner_merge(constant kvtuner_metal_attention_args & args, threadgroup const float * values,
                                 threadgroup const float2 * totals, device const float * sinks, device float * dst,
                                 int head_kv, int first_column, int stream, short part, short thread_index) {
    const int n_columns = min((int) C, args.n_query*(args.n_head/args.n_head_kv) - first_column);
    for (short i = thread_index; i < n_columns*(DV/4); i += N_SIMDWIDTH*FC_kvtuner_attention_simdgroups) {
        const short c = i/(DV/4), quad = i%(DV/4);
        const kvtuner_place place = kvtuner_place_of(args, head_kv, first_column + c);
        const bool has_sink = FC_kvtuner_attention_has_sinks && part == 0;
        const float sink = has_sink ? sinks[place.head] : -FLT_MAX/2;
        float most = sink;
        for (short s = 0; s < FC_kvtuner_attention_simdgroups; ++s) {
            most = max(most, totals[s*C + c].y);
        }
        float sum = has_sink ? exp(sink - most) : 0.0f;
        float4 value = 0.0f;
        for (short s = 0; s < FC_kvtuner_attention_simdgroups; ++s) {
            const float factor = exp(totals[s*C + c].y - most);
            sum += totals[s*C + c].x*factor;
            value += ((threadgroup const float4 *) values)[(s*C + c)*(DV/4) + quad]*factor;
        }
        const int64_t row = ((int64_t) stream*args.n_query + place.query)*args.n_head + place.head;
        if (FC_kvtuner_attention_parts == 1) {
            ((device float4 *) dst)[row*(DV/4) + quad] = sum == 0.0f ? float4(0.0f) : value*(1.0f/sum);
            continue;
        }
        ((device float4 *) dst)[(row*(DV/4) + quad)*FC_kvtuner_attention_parts + part] = value;
        if (quad == 0) {
            const int64_t n_row = (int64_t) args.n_stream*args.n_query*args.n_head;
            device float * total = dst + (n_row*DV + 2*row)*FC_kvtuner_attention_parts + 2*part;
            total[0] = sum;
            total[1] = most;
        }
    }
}

// what lanes have summed, into the memory that the threadgroup shares
template <short DV, short LANES, short C>
static inline void kvtuner_store(thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane,
                                 threadgroup float * values, threadgroup float2 * totals) {
    constexpr short QUADS = KVTUNER_QUADS(DV, LANES);
    FOR_UNROLL (short n = C; n < N_SIMDWIDTH; n *= 2) {
        column.sum += simd_shuffle_xor(column.sum, n);
    }
    FOR_UNROLL (short i = 0; i < C*QUADS; ++i) {
        FOR_UNROLL (short n = LANES; n < N_SIMDWIDTH; n *= 2) {
            o[i] += simd_shuffle_xor(o[i], n);
        }
    }
    if (lane.all < C) {
        totals[lane.all] = float2(column.sum, column.most);
    }
    if (lane.first == 0) {
        FOR_UNROLL (short c = 0; c < C; ++c) {
            FOR_UNROLL (short i = 0; i < QUADS; ++i) {
                const short quad = i*LANES + lane.mine;
                if (quad < DV/4) {
                    ((threadgroup float4 *) values)[c*(DV/4) + quad] = o[c*QUADS + i];
                }
            }
        }
    }
}

// A threadgroup has up to C columns of a KV head and a part of the tokens: a grid of columns and KV heads, streams,
// parts.
template <short DK, short DV, short C>
kernel void kernel_kvtuner_attention(
        constant kvtuner_metal_attention_args & args,
        device const char  * q,
        device const char  * k,
        device const char  * v,
        device const char  * mask,
        device const float * sinks,
        device const char  * exact_k,
        device const char  * exact_v,
        device const char  * exact_mask,
        device const char  * centers,
        device const int   * integers,
        device       float * dst,
        threadgroup  float * shared [[threadgroup(0)]],
        uint3  tgpig[[threadgroup_position_in_grid]],
        ushort tiisg[[thread_index_in_simdgroup]],
        ushort sgitg[[simdgroup_index_in_threadgroup]]) {
    constexpr short LANES   = KVTUNER_LANES(DK);
    constexpr short K_QUADS = KVTUNER_QUADS(DK, LANES);
    constexpr short V_QUADS = KVTUNER_QUADS(DV, LANES);
    constexpr short TOKENS  = N_SIMDWIDTH/C;

    const kvtuner_lane lane = { (short) tiisg, (short) (tiisg%LANES), (short) (tiisg/LANES*LANES) };
    const int head_kv = tgpig.x%args.n_head_kv, first_column = tgpig.x/args.n_head_kv*C, stream = tgpig.y;
    const int n_columns = args.n_query*(args.n_head/args.n_head_kv);

    half4 queries[C*K_QUADS];
    FOR_UNROLL (short c = 0; c < C; ++c) {
        const kvtuner_place place = kvtuner_place_of(args, head_kv, min(first_column + c, n_columns - 1));
        device const float4 * from = (device const float4 *) (q + place.query*args.q.token + place.head*args.q.head + stream*args.q.stream);
        FOR_UNROLL (short i = 0; i < K_QUADS; ++i) {
            const short quad = i*LANES + lane.mine;
            queries[c*K_QUADS + i] = quad < DK/4 ? half4(from[quad]) : half4(0.0h);
        }
    }
    float4 o[C*V_QUADS];
    FOR_UNROLL (short i = 0; i < C*V_QUADS; ++i) {
        o[i] = 0.0f;
    }

    const int own = first_column + lane.all%C;
    const kvtuner_place place = kvtuner_place_of(args, head_kv, min(own, n_columns - 1));
    kvtuner_column column = { own < n_columns, kvtuner_slope(args, place.head), -FLT_MAX/2, 0.0f, -1, 0.0f };

    const int n_exact_steps = FC_kvtuner_attention_has_exact ? (args.n_exact + TOKENS - 1)/TOKENS : 0;
    const int n_steps = n_exact_steps + (args.n_token + TOKENS - 1)/TOKENS;
    const short part = tgpig.z;
    const int run = part*FC_kvtuner_attention_simdgroups + sgitg;
    const int n_runs = FC_kvtuner_attention_parts*FC_kvtuner_attention_simdgroups;
    const int begin = (int64_t) n_steps*run/n_runs, end = (int64_t) n_steps*(run + 1)/n_runs;

    centers += head_kv*DK*sizeof(half);
    if (FC_kvtuner_attention_has_exact) {
        const int first_slot = args.first_slots_at < 0 ? 0 : integers[args.first_slots_at + stream];
        kvtuner_source from;
        from.keys   = { exact_k + head_kv*args.exact_k.head, args.exact_k.token, FC_kvtuner_attention_exact_kind_k, false, 0, 0, 0 };
        from.values = { exact_v + head_kv*args.exact_v.head, args.exact_v.token, FC_kvtuner_attention_exact_kind_v, false, 0, 0, 0 };
        from.mask   = (device const half *) (exact_mask + place.query*args.exact_mask.token + stream*args.exact_mask.stream) + first_slot;
        from.rows   = integers + first_slot;
        from.blocks = integers + args.slot_blocks_at + first_slot;
        from.n      = min(args.n_exact, args.n_slot - first_slot);
        kvtuner_attend<DK, DV, LANES, C>(args, from, centers, begin, min(end, n_exact_steps), queries, o, column, lane);
    }
    {
        kvtuner_source from;
        from.keys   = { k + head_kv*args.k.head + stream*args.k.stream, args.k.token, FC_kvtuner_attention_kind_k, true, 0, args.n_token - 1, 0 };
        from.values = { v + head_kv*args.v.head + stream*args.v.stream, args.v.token, FC_kvtuner_attention_kind_v, true, 0, args.n_token - 1, 0 };
        from.mask   = (device const half *) (mask + place.query*args.mask.token + stream*args.mask.stream);
        from.rows   = integers;
        from.blocks = integers + args.cell_blocks_at + stream*args.n_token;
        from.n      = args.n_token;
        kvtuner_attend<DK, DV, LANES, C>(args, from, centers, max(begin - n_exact_steps, 0), end - n_exact_steps, queries, o, column, lane);
    }

    threadgroup float2 * totals = (threadgroup float2 *) (shared + FC_kvtuner_attention_simdgroups*C*DV);
    kvtuner_store<DV, LANES, C>(o, column, lane, shared + sgitg*C*DV, totals + sgitg*C);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    kvtuner_merge<DV, C>(args, shared, totals, sinks, dst, head_kv, first_column, stream, part, sgitg*N_SIMDWIDTH + tiisg);
}

typedef decltype(kernel_kvtuner_attention<128, 128, 8>) kvtuner_attention_t;

template [[host_name("kernel_kvtuner_attention_dk64_dv64_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<64, 64, 1>;
template [[host_name("kernel_kvtuner_attention_dk64_dv64_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<64, 64, 2>;
template [[host_name("kernel_kvtuner_attention_dk64_dv64_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<64, 64, 4>;
template [[host_name("kernel_kvtuner_attention_dk64_dv64_c8")]] kernel kvtuner_attention_t kernel_kvtuner_attention<64, 64, 8>;
template [[host_name("kernel_kvtuner_attention_dk80_dv80_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<80, 80, 1>;
template [[host_name("kernel_kvtuner_attention_dk80_dv80_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<80, 80, 2>;
template [[host_name("kernel_kvtuner_attention_dk80_dv80_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<80, 80, 4>;
template [[host_name("kernel_kvtuner_attention_dk80_dv80_c8")]] kernel kvtuner_attention_t kernel_kvtuner_attention<80, 80, 8>;
template [[host_name("kernel_kvtuner_attention_dk96_dv96_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<96, 96, 1>;
template [[host_name("kernel_kvtuner_attention_dk96_dv96_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<96, 96, 2>;
template [[host_name("kernel_kvtuner_attention_dk96_dv96_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<96, 96, 4>;
template [[host_name("kernel_kvtuner_attention_dk96_dv96_c8")]] kernel kvtuner_attention_t kernel_kvtuner_attention<96, 96, 8>;
template [[host_name("kernel_kvtuner_attention_dk112_dv112_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<112, 112, 1>;
template [[host_name("kernel_kvtuner_attention_dk112_dv112_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<112, 112, 2>;
template [[host_name("kernel_kvtuner_attention_dk112_dv112_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<112, 112, 4>;
template [[host_name("kernel_kvtuner_attention_dk112_dv112_c8")]] kernel kvtuner_attention_t kernel_kvtuner_attention<112, 112, 8>;
template [[host_name("kernel_kvtuner_attention_dk128_dv128_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<128, 128, 1>;
template [[host_name("kernel_kvtuner_attention_dk128_dv128_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<128, 128, 2>;
template [[host_name("kernel_kvtuner_attention_dk128_dv128_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<128, 128, 4>;
template [[host_name("kernel_kvtuner_attention_dk128_dv128_c8")]] kernel kvtuner_attention_t kernel_kvtuner_attention<128, 128, 8>;
template [[host_name("kernel_kvtuner_attention_dk192_dv128_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<192, 128, 1>;
template [[host_name("kernel_kvtuner_attention_dk192_dv128_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<192, 128, 2>;
template [[host_name("kernel_kvtuner_attention_dk192_dv128_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<192, 128, 4>;
template [[host_name("kernel_kvtuner_attention_dk192_dv128_c8")]] kernel kvtuner_attention_t kernel_kvtuner_attention<192, 128, 8>;
template [[host_name("kernel_kvtuner_attention_dk256_dv256_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<256, 256, 1>;
template [[host_name("kernel_kvtuner_attention_dk256_dv256_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<256, 256, 2>;
template [[host_name("kernel_kvtuner_attention_dk256_dv256_c4")]] kernel kvtuner_attention_t kernel_kvtuner_attention<256, 256, 4>;
template [[host_name("kernel_kvtuner_attention_dk512_dv512_c1")]] kernel kvtuner_attention_t kernel_kvtuner_attention<512, 512, 1>;
template [[host_name("kernel_kvtuner_attention_dk512_dv512_c2")]] kernel kvtuner_attention_t kernel_kvtuner_attention<512, 512, 2>;
