#include "kvtuner-cuda-lot-layout.h"

#include <algorithm>

namespace kvtuner::cuda {

namespace {

constexpr int ALL_BANKS = 128;  // bytes of shared memory

// Rows of such chunks, by so many threads; 0 as a chunk, where they are too many for one row.
row_copy copy_of(int n_rows, int row_bytes, int64_t stride, int pitch, int chunk, int n_threads) {
    row_copy c = {};
    const int of_row = chunk ? row_bytes / chunk : 1;
    c.n_rows = n_rows;
    c.row_bytes = row_bytes;
    c.by_row = divisor_of(of_row);
    c.n_chunks = n_rows * of_row;
    c.stride = (int)stride;
    c.pitch = pitch;
    if (n_rows == 1) {
        c.step = n_threads;
        c.stride_of_step = c.pitch_of_step = n_threads * chunk;
        c.chunk = chunk;
        return c;
    }
    const int at_once = n_threads / of_row;
    c.step = at_once * of_row;
    c.stride_of_step = at_once * c.stride;
    c.pitch_of_step = at_once * c.pitch;
    c.chunk = at_once > 0 ? chunk : 0;
    return c;
}

// Where tokens lie in shared memory: with a gap behind as many as fill its banks, so that lanes that read the same
// bytes of different tokens do not wait for each other. is_whole: that nothing lies between them in the cache.
token_layout layout_of(const cached_side & side, int token_bytes, bool is_key, bool is_whole) {
    token_layout layout = { token_bytes, 0, 0 };
    if (token_bytes % 32 == 0) {
        layout.gap = is_key && side.kind == cache_kind::F16 ? 32 : 16;
        for (int n = 1; is_whole && n * token_bytes % ALL_BANKS != 0; n *= 2) {
            ++layout.shift;
        }
    }
    return layout;
}

// tokens of as many heads of a lot
row_copy side_copy(const cached_side & side, int slice, const attention_args & args, bool is_key,
                   token_layout & layout) {
    const int bytes = slice * args.heads_of_block, n_tokens = args.tokens_of_lot();
    const bool is_whole = args.heads_of_block == args.n_head_kv && side.of.token == bytes;
    const int64_t start = (int64_t)(uintptr_t)side.data;
    layout = layout_of(side, bytes, is_key, is_whole);
    const int together = layout.gap == 0 && is_whole ? n_tokens : 1 << layout.shift;
    const int row = bytes * together, pitch = row + layout.gap;
    const int64_t stride = side.of.token * together;
    return copy_of(n_tokens / together, row, stride, pitch, chunk_for({ start, row, stride, side.of.stream, pitch }),
                   args.lot.carriers * LANES);
}

}  // namespace

bool set_carried_lot(const ggml_tensor * node, attention_args & args, bool takes_rows, int carriers) {
    const ggml_tensor *k = node->src[1], *v = node->src[2];
    lot_layout & lot = args.lot;
    lot.carriers = carriers;
    const int n = args.tokens_of_lot(), n_threads = carriers * LANES;
    lot.k = side_copy(args.cache.k, (int)ggml_row_size(k->type, k->ne[0]), args, true, lot.k_tokens);
    lot.v = side_copy(args.cache.v, (int)ggml_row_size(v->type, v->ne[0]), args, false, lot.v_tokens);
    lot.mask = copy_of(args.n_query, n * 2, args.cache.mask_query * 2, n * 2, 16, n_threads);
    lot.blocks = copy_of(args.centers ? 1 : 0, n * 4, 0, 0, chunk_for({ (int64_t)(uintptr_t)args.cache.blocks, n * 4 }),
                         n_threads);
    lot.k.of_lot = n * (int)args.cache.k.of.token;
    lot.v.of_lot = n * (int)args.cache.v.of.token;
    lot.mask.of_lot = n * 2;
    lot.blocks.of_lot = n * 4;
    lot.key_8 = lot.k_tokens.at(8);
    lot.value_1 = lot.v_tokens.at(1);
    lot.value_8 = lot.v_tokens.at(8);
    lot.next_key = lot.k_tokens.at(TOKENS);
    lot.next_value = lot.v_tokens.at(TOKENS);
    lot.v_at = GGML_PAD(lot.k_tokens.at(n), LOT_ALIGNMENT);
    lot.mask_at = lot.v_at + GGML_PAD(lot.v_tokens.at(n), LOT_ALIGNMENT);
    lot.blocks_at = lot.mask_at + GGML_PAD(args.n_query * n * 2, LOT_ALIGNMENT);
    lot.bytes = lot.blocks_at + (args.centers ? GGML_PAD(n * 4, LOT_ALIGNMENT) : 0);
    lot.is_by_rows = takes_rows;
    lot.copied_bytes = 0;
    for (const row_copy & rows : { lot.k, lot.v, lot.mask, lot.blocks }) {
        lot.is_by_rows = lot.is_by_rows && (rows.n_chunks == 0 || rows.chunk == 16);
        lot.copied_bytes += rows.n_rows * rows.row_bytes;
    }
    const bool is_tight = k->nb[2] == ggml_row_size(k->type, k->ne[0]) && v->nb[2] == ggml_row_size(v->type, v->ne[0]);
    return lot.k.chunk && lot.v.chunk && lot.mask.chunk && is_tight && args.cache.n_tokens % n == 0;
}

bool set_lot(const ggml_tensor * node, attention_args & args, bool takes_rows, int n_heads, int sub_warps) {
    args.heads_of_block = n_heads;
    args.sub_warps = sub_warps;
    if (takes_rows && set_carried_lot(node, args, true, args.n_warps()) && args.lot.is_by_rows) {
        args.lot.carriers = 1;
        return true;
    }
    for (int turns : { 4, 3, 2, 1 }) {
        if (args.n_warps() % turns == 0 && set_carried_lot(node, args, false, args.n_warps() / turns)) {
            return true;
        }
    }
    return false;
}

int query_bytes(const attention_args & args, int size_k, int tiles) {
    return args.heads_of_block * size_k / 16 * tiles * LANES * (int)sizeof(uint2);
}

int queries_in_lot(const attention_args & args, int size_k, int tiles) {
    return has_queries_in_registers(size_k, tiles) ? query_bytes(args, size_k, tiles) : 0;
}

int bytes_beside(const attention_args & args, int size_k, int size_v, int tiles) {
    return BARRIERS_BYTES + args.heads_of_block * sum_bytes(size_k, tiles) + query_bytes(args, size_k, tiles) -
           queries_in_lot(args, size_k, tiles) + args.n_teams() * team_score_bytes(size_v, tiles);
}

int merge_bytes(const attention_args & args, int size_v, int tiles) {
    return args.n_teams() * args.columns_of_block(tiles) *
           (row_pitch(size_v) * (int)sizeof(float) + (int)sizeof(float2));
}

int lots_bytes(const ggml_tensor * node, const attention_args & args, int tiles, int n_lots) {
    const int size_k = (int)node->src[1]->ne[0], size_v = (int)node->src[2]->ne[0];
    return std::max(n_lots * args.lot.bytes + bytes_beside(args, size_k, size_v, tiles),
                    merge_bytes(args, size_v, tiles));
}

void set_lots(const ggml_tensor * node, attention_args & args, int tiles, int limit) {
    const int size_k = (int)node->src[1]->ne[0], size_v = (int)node->src[2]->ne[0];
    args.n_lots = std::min(MOST_LOTS, (limit - bytes_beside(args, size_k, size_v, tiles)) / args.lot.bytes);
    if (args.lot.bytes < queries_in_lot(args, size_k, tiles) || merge_bytes(args, size_v, tiles) > limit) {
        args.n_lots = 0;
    }
}

}  // namespace kvtuner::cuda
