// Attention of few queries over caches of any two types: each key and value becomes numbers once for all query heads
// that share it, and each simdgroup has a run of tokens of its own.
//
// Queries are columns: those of the query heads of a KV head for one query, then those for the next. A simdgroup has
// COLUMNS of them. A lane has some values of each, and of 32 scores, of as many tokens and columns, one: so weights are
// found once. LANES lanes have a token's row: where rows are short, half of them, and each half has tokens of its own.
//
// The host defines KVTUNER_DK and KVTUNER_DV, values of a key and of a value, and KVTUNER_COLUMNS: 1, 2, 4 or 8.
#include "kvtuner-metal-merge.h"

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
