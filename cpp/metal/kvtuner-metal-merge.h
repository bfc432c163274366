// From the sums of simdgroups to rows of the result.
#pragma once

#include "kvtuner-metal-columns.h"

struct kvtuner_place {
    int query;
    int head;
};

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
    FOR_UNROLL(short n = COLUMNS; n < N_SIMDWIDTH; n *= 2) {
        column.sum += simd_shuffle_xor(column.sum, (ushort)n);
    }
    if (lane.all < COLUMNS) {
        totals[lane.all] = float2(column.sum, column.most);
    }
    FOR_UNROLL(short c = 0; c < COLUMNS; ++c) {
        FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
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
    FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
        const short quad = i * LANES + lane.mine;
        if (lane.first == 0 && quad < DV / 4) {
            row[quad] = x[i];
        }
    }
}

// a row of the result, of what its values by their weights and these add up to
static inline void kvtuner_put_result(constant kvtuner_metal_attention_args & args, thread float4 * x, float sum,
                                      device float4 * row, kvtuner_lane lane) {
    FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
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
        FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
            x[i] = float4(0.0f);
        }
        for (short s = 0; s < FC_kvtuner_simdgroups; ++s) {
            const float factor = exp(totals[s * COLUMNS + c][1] - most);
            sum += totals[s * COLUMNS + c][0] * factor;
            FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
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
