// Attention of few queries over caches of any two types: each key and value becomes numbers once for all query heads
// that share it, and each simdgroup has a run of tokens of its own.
//
// Queries are columns: those of the query heads of a KV head for one query, then those for the next. A simdgroup has
// COLUMNS of them. A lane has some values of each, and of 32 scores, of as many tokens and columns, one: so weights are
// found once. LANES lanes have a token's row: where rows are short, half of them, and each half has tokens of its own.
//
// The host defines KVTUNER_DK and KVTUNER_DV, values of a key and of a value, and KVTUNER_COLUMNS: 1, 2, 4 or 8.
#include "kvtuner-metal-quads.h"

#define DK KVTUNER_DK
#define DV KVTUNER_DV
#define COLUMNS KVTUNER_COLUMNS
#define LANES (DK % 128 == 64 ? 16 : 32)
#define QUADS_OF(n) (((n) / 4 + LANES - 1) / LANES)  // of four values, that a lane has of a row
#define K_QUADS QUADS_OF(DK)
#define V_QUADS QUADS_OF(DV)
#define TOKENS (N_SIMDWIDTH / COLUMNS)     // of a step
#define SUMS 8                             // of a token and a column, that lanes add up at once
#define CHUNKS (LANES / SUMS)              // of a step
#define TOKENS_OF_CHUNK (SUMS / COLUMNS)  // that a lane has

constant short FC_kvtuner_kind_k       [[function_constant(FC_KVTUNER_ATTENTION + 0)]];
constant short FC_kvtuner_kind_v       [[function_constant(FC_KVTUNER_ATTENTION + 1)]];
constant short FC_kvtuner_exact_kind_k [[function_constant(FC_KVTUNER_ATTENTION + 2)]];
constant short FC_kvtuner_exact_kind_v [[function_constant(FC_KVTUNER_ATTENTION + 3)]];
constant bool FC_kvtuner_has_mask      [[function_constant(FC_KVTUNER_ATTENTION + 4)]];
constant bool FC_kvtuner_has_sinks     [[function_constant(FC_KVTUNER_ATTENTION + 5)]];
constant bool FC_kvtuner_has_exact     [[function_constant(FC_KVTUNER_ATTENTION + 6)]];
constant bool FC_kvtuner_has_centers   [[function_constant(FC_KVTUNER_ATTENTION + 7)]];
constant short FC_kvtuner_parts        [[function_constant(FC_KVTUNER_ATTENTION + 8)]];
constant short FC_kvtuner_simdgroups   [[function_constant(FC_KVTUNER_ATTENTION + 9)]];

// which of 32 lanes it is, which of those that have its tokens, and the first of them
struct kvtuner_lane {
    short all;
    short mine;
    short first;
};

// rows of one head: in order from `first` to `last`, or those that lanes say
struct kvtuner_rows {
    device const char * data;
    uint64_t stride;
    short kind;
    bool in_order;
    int first;
    int last;
    int row;  // of the lane's token
};

// tokens of the cache, or those that have rows of their own
struct kvtuner_source {
    kvtuner_rows keys;
    kvtuner_rows values;
    device const half * mask;   // of the query of the lane's column
    device const int * rows;    // of each token, where they are not in order; negative for none
    device const int * blocks;  // of positions, of each token
    int n;
};

// what a lane knows of its column, and has summed
struct kvtuner_column {
    bool is_one;  // not there to fill up COLUMNS
    float slope;  // of ALiBi
    float most;
    float sum;
    int center_block;  // whose score is known; negative for none
    float center_score;
};

struct kvtuner_place {
    int query;
    int head;
};

// mine + other as upstream's kernel_fwht, and from some length on kernel_fwht_tg, round it
template <typename T>
static inline T kvtuner_sum(T mine, T other, int n) {
    return n < GGML_METAL_FWHT_TG_MIN_N ? other - mine + 2.0f * mine : other + mine;
}

// Walsh-Hadamard transform, orthonormal, of n values at a time of the row that lanes have, a power of two from 4 on; 0:
// none.
template <short QUADS>
static inline void kvtuner_rotate(thread float4 * x, int n, kvtuner_lane lane) {
    if (n == 0) {
        return;
    }
    const float scale = 1.0f / sqrt((float)n);
    FOR_UNROLL (short i = 0; i < QUADS; ++i) {
        const float4 v = x[i] * scale;
        const float a = kvtuner_sum(v[0], v[1], n), b = v[0] - v[1];
        const float c = kvtuner_sum(v[2], v[3], n), d = v[2] - v[3];
        x[i] = float4(kvtuner_sum(a, c, n), kvtuner_sum(b, d, n), a - c, b - d);
    }
    for (short step = 1; step < LANES && 4 * step < n; step *= 2) {
        const int as = 4 * step < N_SIMDWIDTH ? n : GGML_METAL_FWHT_TG_MIN_N;
        FOR_UNROLL (short i = 0; i < QUADS; ++i) {
            const float4 other = simd_shuffle_xor(x[i], (ushort)step);
            x[i] = (lane.all & step) != 0 ? other - x[i] : kvtuner_sum(x[i], other, as);
        }
    }
    FOR_UNROLL (short step = 1; step < QUADS; step *= 2) {
        FOR_UNROLL (short i = 0; i + step < QUADS; ++i) {
            if ((i & step) == 0 && 4 * LANES * step < n) {
                const float4 low = x[i];
                const float4 high = x[i + step];
                x[i] = low + high;
                x[i + step] = low - high;
            }
        }
    }
}

// where row i of a step begins, of those of the lane's half
static inline device const char * kvtuner_row(thread const kvtuner_rows & rows, kvtuner_lane lane, short i) {
    const int row = rows.in_order ? min(rows.first + lane.first / COLUMNS + i, rows.last)
                                  : simd_shuffle(rows.row, (ushort)(lane.first + i * COLUMNS));
    return rows.data + row * rows.stride;
}

// what the lanes of a token have, added up: a lane gets the sum with the number of its last bits
static inline float kvtuner_add_up(thread float * sums, short lane) {
    FOR_UNROLL (short n = SUMS / 2; n > 0; n /= 2) {
        const bool is_upper = (lane & n) != 0;
        FOR_UNROLL (short i = 0; i < n; ++i) {
            const float kept = is_upper ? sums[i + n] : sums[i];
            const float given = is_upper ? sums[i] : sums[i + n];
            sums[i] = kept + simd_shuffle_xor(given, (ushort)n);
        }
    }
    FOR_UNROLL (short n = SUMS; n < LANES; n *= 2) {
        sums[0] += simd_shuffle_xor(sums[0], (ushort)n);
    }
    return sums[0];
}

// of the key of token lane / COLUMNS and the query of column lane % COLUMNS
static inline float kvtuner_product(thread const kvtuner_rows & keys, thread const half4 * q, kvtuner_lane lane) {
    float product = 0.0f;
    for (short chunk = 0; chunk < CHUNKS; ++chunk) {
        float sums[SUMS];
        FOR_UNROLL (short t = 0; t < TOKENS_OF_CHUNK; ++t) {
            device const char * row = kvtuner_row(keys, lane, chunk * TOKENS_OF_CHUNK + t);
            FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
                sums[t * COLUMNS + c] = 0.0f;
            }
            FOR_UNROLL (short i = 0; i < K_QUADS; ++i) {
                const short quad = i * LANES + lane.mine;
                if (quad < DK / 4) {
                    const float4 x = kvtuner_quad(keys.kind, row, quad);
                    FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
                        sums[t * COLUMNS + c] += dot(x, float4(q[c * K_QUADS + i]));
                    }
                }
            }
        }
        const float sum = kvtuner_add_up(sums, lane.all);
        product = lane.mine / SUMS == chunk ? sum : product;
    }
    return product;
}

static inline void kvtuner_add_values(thread const kvtuner_rows & values, float weight, thread float4 * o,
                                      kvtuner_lane lane) {
    for (short chunk = 0; chunk < CHUNKS; ++chunk) {
        FOR_UNROLL (short t = 0; t < TOKENS_OF_CHUNK; ++t) {
            const short token = chunk * TOKENS_OF_CHUNK + t;
            device const char * row = kvtuner_row(values, lane, token);
            float weights[COLUMNS];
            FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
                weights[c] = simd_shuffle(weight, (ushort)(lane.first + token * COLUMNS + c));
            }
            FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
                const short quad = i * LANES + lane.mine;
                if (quad < DV / 4) {
                    const float4 x = kvtuner_quad(values.kind, row, quad);
                    FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
                        o[c * V_QUADS + i] += x * weights[c];
                    }
                }
            }
        }
    }
}

// what keys that are less of the center of their block of positions lack: most steps are of the block before
static inline float kvtuner_center_score(device const char * centers, uint64_t stride, int block,
                                         thread const half4 * q, thread kvtuner_column & column, kvtuner_lane lane) {
    const int least = simd_min(block);
    const bool is_one = least == simd_max(block);
    if (!is_one || least != column.center_block) {
        const kvtuner_rows rows = { centers, stride, KVTUNER_METAL_F16, false, 0, 0, block };
        column.center_score = kvtuner_product(rows, q, lane);
        column.center_block = is_one ? least : -1;
    }
    return column.center_score;
}

// where the largest score of a column grows, what was summed counts less
static inline void kvtuner_raise(float most, thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane) {
    if (simd_max(most - column.most) <= 0.0f) {
        return;
    }
    const float factor = exp(column.most - most);
    column.sum *= factor;
    column.most = most;
    FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
        const float of_column = simd_shuffle(factor, (ushort)(lane.first + c));
        FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
            o[c * V_QUADS + i] *= of_column;
        }
    }
}

// adds the tokens of steps from `begin` up to `end`
static inline void kvtuner_attend(constant kvtuner_metal_attention_args & args, device const char * centers,
                                  thread kvtuner_source & from, int begin, int end, thread const half4 * q,
                                  thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane) {
    for (int step = begin; step < end; ++step) {
        const int token = step * TOKENS + lane.all / COLUMNS;
        const int inside = min(token, from.n - 1);
        const int row = from.keys.in_order ? inside : from.rows[inside];
        float mask = KVTUNER_METAL_UNSEEN;
        if (column.is_one && token < from.n && row >= 0) {
            mask = FC_kvtuner_has_mask ? (float)from.mask[token] : 0.0f;
        }
        if (simd_max(mask) <= KVTUNER_METAL_UNSEEN) {
            continue;
        }
        from.keys.first = from.values.first = step * TOKENS;
        from.keys.row = from.values.row = max(row, 0);
        float score = kvtuner_product(from.keys, q, lane);
        if (FC_kvtuner_has_centers) {
            const int block = row < 0 ? 0 : from.blocks[inside];
            score += kvtuner_center_score(centers, args.center_block, block, q, column, lane);
        }
        score *= args.scale;
        if (args.cap != 0.0f) {
            score = args.cap * precise::tanh(score);
        }
        const bool is_seen = mask > KVTUNER_METAL_UNSEEN;
        score += column.slope * mask;
        float most = is_seen ? max(score, column.most) : column.most;
        FOR_UNROLL (short n = COLUMNS; n < N_SIMDWIDTH; n *= 2) {
            most = max(most, simd_shuffle_xor(most, (ushort)n));
        }
        kvtuner_raise(most, o, column, lane);
        const float weight = is_seen ? exp(score - most) : 0.0f;
        column.sum += weight;
        kvtuner_add_values(from.values, weight, o, lane);
    }
}

static inline float kvtuner_slope(constant kvtuner_metal_attention_args & args, int head) {
    if (args.max_bias == 0.0f) {
        return 1.0f;
    }
    int n = 1;
    while (2 * n <= args.n_head) {
        n *= 2;
    }
    const float exponent = head < n ? (float)(head + 1) / n : (float)(2 * (head - n) + 1) / (2 * n);
    return exp2(-args.max_bias * exponent);
}

static inline kvtuner_place kvtuner_place_of(constant kvtuner_metal_attention_args & args, int head_kv, int column) {
    const int group = args.n_head / args.n_head_kv;
    return { column / group, head_kv * group + column % group };
}

// what lanes have summed, into the memory of the threadgroup
static inline void kvtuner_store_sums(thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane,
                                      threadgroup float4 * values, threadgroup float2 * totals) {
    FOR_UNROLL (short n = COLUMNS; n < N_SIMDWIDTH; n *= 2) {
        column.sum += simd_shuffle_xor(column.sum, (ushort)n);
    }
    if (lane.all < COLUMNS) {
        totals[lane.all] = float2(column.sum, column.most);
    }
    FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
        FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
            float4 sum = o[c * V_QUADS + i];
            if (LANES < N_SIMDWIDTH) {
                sum += simd_shuffle_xor(sum, (ushort)16);
            }
            const short quad = i * LANES + lane.mine;
            if (lane.first == 0 && quad < DV / 4) {
                values[c * (DV / 4) + quad] = sum;
            }
        }
    }
}

static inline int64_t kvtuner_rows_of(constant kvtuner_metal_attention_args & args) {
    return (int64_t)args.n_stream * args.n_query * args.n_head;
}

static inline void kvtuner_put(thread const float4 * x, device float4 * row, kvtuner_lane lane) {
    FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
        const short quad = i * LANES + lane.mine;
        if (lane.first == 0 && quad < DV / 4) {
            row[quad] = x[i];
        }
    }
}

// a row of the result, of what its values by their weights and these add up to
static inline void kvtuner_put_result(constant kvtuner_metal_attention_args & args, thread float4 * x, float sum,
                                      device float4 * row, kvtuner_lane lane) {
    FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
        x[i] *= sum == 0.0f ? 0.0f : 1.0f / sum;
    }
    kvtuner_rotate<V_QUADS>(x, args.out_rotation, lane);
    kvtuner_put(x, row, lane);
}

// What the simdgroups of a threadgroup have, each of them a column at a time: rows of the result, or of a part of it.
// Parts are [values, rows, parts], and behind them the sum of the weights and the largest score of each row.
static inline void kvtuner_merge(constant kvtuner_metal_attention_args & args, threadgroup const float4 * values,
                                 threadgroup const float2 * totals, device const float * sinks, device float4 * to,
                                 int head_kv, int first_column, int stream, int part, short simdgroup,
                                 kvtuner_lane lane) {
    const int n_columns = min(COLUMNS, args.n_query * (args.n_head / args.n_head_kv) - first_column);
    for (int c = simdgroup; c < n_columns; c += FC_kvtuner_simdgroups) {
        const kvtuner_place place = kvtuner_place_of(args, head_kv, first_column + c);
        const bool has_sink = FC_kvtuner_has_sinks && part == 0;
        float most = has_sink ? sinks[place.head] : -FLT_MAX / 2;
        for (short s = 0; s < FC_kvtuner_simdgroups; ++s) {
            most = max(most, totals[s * COLUMNS + c][1]);
        }
        float sum = has_sink ? exp(sinks[place.head] - most) : 0.0f;
        float4 x[V_QUADS];
        FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
            x[i] = float4(0.0f);
        }
        for (short s = 0; s < FC_kvtuner_simdgroups; ++s) {
            const float factor = exp(totals[s * COLUMNS + c][1] - most);
            sum += totals[s * COLUMNS + c][0] * factor;
            FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
                const short quad = i * LANES + lane.mine;
                if (quad < DV / 4) {
                    x[i] += values[(s * COLUMNS + c) * (DV / 4) + quad] * factor;
                }
            }
        }
        const int64_t row = ((int64_t)stream * args.n_query + place.query) * args.n_head + place.head;
        if (FC_kvtuner_parts == 1) {
            kvtuner_put_result(args, x, sum, to + row * (DV / 4), lane);
            continue;
        }
        const int64_t n_rows = kvtuner_rows_of(args);
        kvtuner_put(x, to + (part * n_rows + row) * (DV / 4), lane);
        if (lane.all == 0) {
            ((device float2 *)(to + FC_kvtuner_parts * n_rows * (DV / 4)))[part * n_rows + row] = float2(sum, most);
        }
    }
}

// grid: KV heads by groups of columns, streams, parts of the tokens
kernel void kvtuner_attention(
        constant kvtuner_metal_attention_args & args,
        device const char * q,
        device const char * k,
        device const char * v,
        device const char * mask,
        device const float * sinks,
        device const char * exact_k,
        device const char * exact_v,
        device const char * exact_mask,
        device const char * centers,
        device const int * integers,
        device float4 * to,
        threadgroup float4 * shared [[threadgroup(0)]],
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort tiisg[[thread_index_in_simdgroup]],
        ushort sgitg[[simdgroup_index_in_threadgroup]]) {
    const kvtuner_lane lane = { (short)tiisg, (short)(tiisg % LANES), (short)(tiisg / LANES * LANES) };
    const int head_kv = tgpig[0] % args.n_head_kv;
    const int first_column = tgpig[0] / args.n_head_kv * COLUMNS;
    const int last_column = args.n_query * (args.n_head / args.n_head_kv) - 1;
    const int stream = tgpig[1];
    const int part = tgpig[2];

    half4 queries[COLUMNS * K_QUADS];
    FOR_UNROLL (short c = 0; c < COLUMNS; ++c) {
        const kvtuner_place place = kvtuner_place_of(args, head_kv, min(first_column + c, last_column));
        device const char * row = q + place.query * args.q.token + place.head * args.q.head + stream * args.q.stream;
        float4 x[K_QUADS];
        FOR_UNROLL (short i = 0; i < K_QUADS; ++i) {
            const short quad = i * LANES + lane.mine;
            x[i] = quad < DK / 4 ? ((device const float4 *)row)[quad] : float4(0.0f);
        }
        kvtuner_rotate<K_QUADS>(x, args.q_rotation, lane);
        FOR_UNROLL (short i = 0; i < K_QUADS; ++i) {
            queries[c * K_QUADS + i] = half4(x[i]);
        }
    }
    float4 o[COLUMNS * V_QUADS];
    FOR_UNROLL (short i = 0; i < COLUMNS * V_QUADS; ++i) {
        o[i] = float4(0.0f);
    }
    const int own = first_column + lane.all % COLUMNS;
    const kvtuner_place place = kvtuner_place_of(args, head_kv, min(own, last_column));
    kvtuner_column column = { own <= last_column, kvtuner_slope(args, place.head), -FLT_MAX / 2, 0.0f, -1, 0.0f };

    const int n_exact_steps = FC_kvtuner_has_exact ? (args.n_exact + TOKENS - 1) / TOKENS : 0;
    const int n_steps = n_exact_steps + (args.n_token + TOKENS - 1) / TOKENS;
    const int run = part * FC_kvtuner_simdgroups + sgitg;
    const int n_runs = FC_kvtuner_parts * FC_kvtuner_simdgroups;
    const int begin = (int64_t)n_steps * run / n_runs;
    const int end = (int64_t)n_steps * (run + 1) / n_runs;

    centers += head_kv * DK * sizeof(half);
    if (FC_kvtuner_has_exact) {
        const int first = args.first_slots_at < 0 ? 0 : integers[args.first_slots_at + stream];
        device const char * keys = exact_k + head_kv * args.exact_k.head;
        device const char * values = exact_v + head_kv * args.exact_v.head;
        device const char * seen = exact_mask + place.query * args.exact_mask.token + stream * args.exact_mask.stream;
        kvtuner_source exact = {
            { keys, args.exact_k.token, FC_kvtuner_exact_kind_k, false, 0, 0, 0 },
            { values, args.exact_v.token, FC_kvtuner_exact_kind_v, false, 0, 0, 0 },
            (device const half *)seen + first,
            integers + first,
            integers + args.slot_blocks_at + first,
            min(args.n_exact, args.n_slot - first),
        };
        kvtuner_attend(args, centers, exact, begin, min(end, n_exact_steps), queries, o, column, lane);
    }
    device const char * keys = k + head_kv * args.k.head + stream * args.k.stream;
    device const char * values = v + head_kv * args.v.head + stream * args.v.stream;
    device const char * seen = mask + place.query * args.mask.token + stream * args.mask.stream;
    kvtuner_source cache = {
        { keys, args.k.token, FC_kvtuner_kind_k, true, 0, args.n_token - 1, 0 },
        { values, args.v.token, FC_kvtuner_kind_v, true, 0, args.n_token - 1, 0 },
        (device const half *)seen,
        integers,
        integers + args.cell_blocks_at + stream * args.n_token,
        args.n_token,
    };
    kvtuner_attend(args, centers, cache, max(begin - n_exact_steps, 0), end - n_exact_steps, queries, o, column, lane);

    threadgroup float2 * totals = (threadgroup float2 *)(shared + FC_kvtuner_simdgroups * COLUMNS * (DV / 4));
    kvtuner_store_sums(o, column, lane, shared + sgitg * COLUMNS * (DV / 4), totals + sgitg * COLUMNS);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    kvtuner_merge(args, shared, totals, sinks, to, head_kv, first_column, stream, part, sgitg, lane);
}

// rows of the result from all parts; grid: rows. A lane has a part first, and then values of all.
kernel void kvtuner_add_parts(
        constant kvtuner_metal_attention_args & args,
        device const float4 * parts,
        device float4 * to,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort tiisg[[thread_index_in_simdgroup]]) {
    const kvtuner_lane lane = { (short)tiisg, (short)(tiisg % LANES), (short)(tiisg / LANES * LANES) };
    const int64_t n_rows = kvtuner_rows_of(args);
    const int64_t row = tgpig[0];
    device const float2 * totals = (device const float2 *)(parts + KVTUNER_METAL_PARTS * n_rows * (DV / 4));
    const float2 total = totals[tiisg * n_rows + row];
    const float most = simd_max(total[1]);
    const float factor = exp(total[1] - most);
    const float sum = simd_sum(total[0] * factor);
    float4 x[V_QUADS];
    FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
        x[i] = float4(0.0f);
    }
    for (short part = 0; part < KVTUNER_METAL_PARTS; ++part) {
        const float of_part = simd_shuffle(factor, (ushort)part);
        FOR_UNROLL (short i = 0; i < V_QUADS; ++i) {
            const short quad = i * LANES + lane.mine;
            if (quad < DV / 4) {
                x[i] += parts[(part * n_rows + row) * (DV / 4) + quad] * of_part;
            }
        }
    }
    kvtuner_put_result(args, x, sum, to + row * (DV / 4), lane);
}
