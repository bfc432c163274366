// Caches as halves for upstream's kernels of many queries, with centers, and tokens that have rows of their own in
// front.
#include "kvtuner-metal-quads.h"

constant short FC_kvtuner_dense_kind       [[function_constant(FC_KVTUNER_DENSE + 0)]];
constant bool FC_kvtuner_dense_has_rows    [[function_constant(FC_KVTUNER_DENSE + 1)]];
constant bool FC_kvtuner_dense_has_centers [[function_constant(FC_KVTUNER_DENSE + 2)]];

// grid: quads of tokens, heads, streams
kernel void kvtuner_halves(
        constant kvtuner_metal_halves_args & args,
        device const char * from,
        device const char * centers,
        device const int * integers,
        device char * to,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort tiitg[[thread_index_in_threadgroup]],
        ushort3 ntg[[threads_per_threadgroup]]) {
    const int64_t i = (int64_t)tgpig[0] * ntg[0] + tiitg;
    const int token = i / args.n_quad;
    const int quad = i % args.n_quad;
    const int head = tgpig[1];
    const int stream = tgpig[2];
    if (token >= args.n_to) {
        return;
    }
    int row = token < args.n_from ? token : -1;
    if (FC_kvtuner_dense_has_rows && row >= 0) {
        row = integers[args.rows_at + token];
    }
    float4 x = float4(0.0f);
    if (row >= 0) {
        from += row * args.from.token + head * args.from.head + stream * args.from.stream;
        x = kvtuner_quad(FC_kvtuner_dense_kind, from, quad);
        if (FC_kvtuner_dense_has_centers) {
            const int block = integers[args.blocks_at + stream * args.blocks_of_stream + token];
            centers += block * args.center_block;
            x += float4(((device const half4 *)centers)[head * args.n_quad + quad]);
        }
    }
    device char * head_to = to + head * args.to_head + stream * args.to_stream;
    ((device half4 *)head_to)[(int64_t)token * args.n_quad + quad] = half4(x);
}

// grid: tokens, queries, streams
kernel void kvtuner_masks(
        constant kvtuner_metal_masks_args & args,
        device const char * cache,
        device const char * exact,
        device const int * integers,
        device half * to,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort tiitg[[thread_index_in_threadgroup]],
        ushort3 ntg[[threads_per_threadgroup]]) {
    const int i = tgpig[0] * ntg[0] + tiitg;
    const int query = tgpig[1];
    const int stream = tgpig[2];
    if (i >= args.n_all) {
        return;
    }
    half mask = -MAXHALF;
    const int token = i - args.n_slot;
    if (token >= 0 && token < args.n_token) {
        mask = ((device const half *)(cache + query * args.cache.token + stream * args.cache.stream))[token];
    } else if (token < 0 && integers[args.rows_at + i] >= 0) {
        mask = ((device const half *)(exact + query * args.exact.token + stream * args.exact.stream))[i];
    }
    to[((int64_t)stream * args.n_query + query) * args.n_all + i] = mask;
}
