#include "kvtuner-exact-input.h"

#include "kvtuner-cache.h"
#include "kvtuner-exact.h"
#include "kvtuner-mark.h"

#include "llama-kv-cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

namespace {

constexpr ggml_fp16_t UNSEEN = 0xfc00;  // minus infinity

// a cell that some query of a sequence may read exactly
struct slot {
    int32_t position;
    uint32_t cell;
    int32_t row;
};

// The ends of all sequences that a ubatch can have, and its own tokens. Padded: what lies behind these inputs begins
// with a cache line, too, or products of matrices take a third longer.
int64_t n_slots(const kvtuner_exact_rows & exact, uint32_t n_seq_max, uint32_t n_tokens) {
    return GGML_PAD((int64_t)std::min(n_seq_max, n_tokens) * exact.ends_of().n_positions() + n_tokens, 32);
}

// the queries of one sequence: which of the ubatch, and the range of their positions
struct queries {
    std::vector<uint32_t> of;
    int32_t oldest = INT32_MAX, newest = -1;
};

std::map<llama_seq_id, queries> queries_of(const llama_ubatch & ubatch) {
    std::map<llama_seq_id, queries> found;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        queries & q = found[ubatch.seq_id[i][0]];
        q.of.push_back(i);
        q.oldest = std::min(q.oldest, ubatch.pos[i]);
        q.newest = std::max(q.newest, ubatch.pos[i]);
    }
    return found;
}

// in the order of their positions
std::vector<slot> slots_of(const kvtuner_exact_rows & exact, const llama_kv_cells & cells, uint32_t stream,
                           llama_seq_id seq, const queries & q) {
    const auto & by_position = cells.seq_pos_get(seq);
    std::vector<slot> slots;
    const auto add = [&](int32_t from, int32_t to) {
        for (auto it = by_position.lower_bound({ from, 0 }); it != by_position.end() && it->first < to; ++it) {
            const int32_t row = exact.row_of({ stream, it->second });
            if (row >= 0) {
                slots.push_back({ it->first, it->second, row });
            }
        }
    };
    const int32_t first = std::min((int32_t)exact.ends_of().first, q.newest + 1);
    add(0, first);
    add(std::max(first, q.oldest - (int32_t)exact.ends_of().last + 1), q.newest + 1);
    return slots;
}

// the row of each slot, and the block of its cell where centers have any
void list_slots(const std::vector<slot> & slots, kvtuner_center_blocks & blocks, uint32_t stream, int32_t * row,
                int32_t * block) {
    for (const slot & s : slots) {
        *row++ = s.row;
        if (blocks.is_used()) {
            *block++ = blocks.of_stream(stream)[s.cell];
        }
    }
}

// what the query at position t reads exactly goes from its mask of the cache to that of the slots
void move_seen(const kvtuner_exact_rows & exact, const std::vector<slot> & slots, int32_t t, ggml_fp16_t * in_cache,
               ggml_fp16_t * in_rows) {
    const auto move = [&](int32_t from, int32_t to) {
        const auto is_before = [](const slot & s, int32_t position) { return s.position < position; };
        auto it = std::lower_bound(slots.begin(), slots.end(), from, is_before);
        for (; it != slots.end() && it->position < to; ++it) {
            in_rows[it - slots.begin()] = std::exchange(in_cache[it->cell], UNSEEN);
        }
    };
    const int32_t first = exact.ends_of().first;
    move(0, first);
    move(std::max(first, t - (int32_t)exact.ends_of().last + 1), t + 1);
}

}  // namespace

void kvtuner_build_exact(ggml_context * ctx, const llama_kv_cache_context & context, const llama_ubatch & ubatch,
                         const ggml_tensor * mask) {
    kvtuner_exact_rows & exact = kvtuner_cache::exact(context);
    const llama_kv_cache & cache = kvtuner_cache::of(context);
    const bool has_blocks = kvtuner_cache::centers(cache).blocks.is_used();
    if (!exact.is_used() && !has_blocks) {
        return;
    }
    const int64_t n = exact.is_used() ? n_slots(exact, cache.get_n_seq_max(), ubatch.n_tokens) : 0;
    const int64_t n_cell = has_blocks ? mask->ne[0] * mask->ne[3] : 0;
    kvtuner_exact_rows::inputs & inputs = exact.inputs_of(mask);
    inputs.targets = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, ubatch.n_tokens);
    const int64_t n_stream = n > 0 ? mask->ne[3] : 0;  // the first slot of each
    inputs.rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (has_blocks ? 2 * n : n) + n_cell + n_stream);
    inputs.seen = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n, mask->ne[1], 1, mask->ne[3]);
    inputs.whole = ggml_dup_tensor(ctx, mask);
    for (ggml_tensor * tensor : { inputs.targets, inputs.rows, inputs.seen, inputs.whole }) {
        ggml_set_input(tensor);
    }
}

void kvtuner_write_exact(ggml_context * ctx, ggml_cgraph * graph, const llama_kv_cache_context & context,
                         const ggml_tensor * mask, const ggml_tensor * k_idxs, ggml_tensor * k, ggml_tensor * v,
                         int32_t il) {
    kvtuner_exact_rows & exact = kvtuner_cache::exact(context);
    if (!exact.has(il) || !k || !v) {
        return;
    }
    const auto add = [&](ggml_tensor * to, ggml_tensor * x) {
        x = ggml_view_2d(ctx, x, x->ne[0] * x->ne[1], x->ne[2], x->nb[2], 0);
        ggml_build_forward_expand(graph, ggml_set_rows(ctx, to, x, exact.inputs_of(mask).targets));
    };
    add(exact.of(il).k, kvtuner_cache::less_center(kvtuner_cache::of(context), ctx, k, k_idxs, il));
    add(exact.of(il).v, v);
}

namespace {

void read_rows(ggml_context * ctx, const kvtuner_exact_rows::sides & all, const kvtuner_exact_rows::inputs & inputs,
               ggml_tensor * attention) {
    const auto heads = [&](ggml_tensor * rows, const ggml_tensor * like) {
        const size_t n_bytes = ggml_row_size(rows->type, like->ne[0]);
        return ggml_view_3d(ctx, rows, like->ne[0], rows->ne[1], like->ne[2], rows->nb[1], n_bytes, 0);
    };
    ggml_tensor ** sources = attention->src + KVTUNER_EXACT_AT;
    sources[0] = heads(all.k, attention->src[1]);
    sources[1] = heads(all.v, attention->src[2]);
    sources[2] = inputs.seen;
    attention->src[KVTUNER_INTEGERS_AT] = inputs.rows;
}

void read_centers(ggml_context * ctx, ggml_tensor * table, const kvtuner_exact_rows::inputs & inputs,
                  ggml_tensor * attention) {
    attention->src[KVTUNER_CENTERS_AT] = table;
    if (!kvtuner_has_exact(attention)) {
        const int64_t of_slots = 2 * inputs.seen->ne[0];
        attention->src[KVTUNER_INTEGERS_AT] =
                ggml_view_1d(ctx, inputs.rows, inputs.rows->ne[0] - of_slots, of_slots * sizeof(int32_t));
    }
}

}  // namespace

void kvtuner_read_exact(ggml_context * ctx, ggml_cgraph * graph, const llama_kv_cache_context & context,
                        const ggml_tensor * mask, ggml_tensor * cur, int32_t il) {
    kvtuner_exact_rows & exact = kvtuner_cache::exact(context);
    const llama_kv_cache & cache = kvtuner_cache::of(context);
    const uint32_t stored = kvtuner_cache::stored_layer(cache, il);
    const kvtuner_center * center = kvtuner_cache::center(cache, il);
    const bool has_centers = center && center->table;
    if (!exact.is_used() && !has_centers) {
        return;
    }
    while (cur->op != GGML_OP_FLASH_ATTN_EXT) {
        cur = cur->src[0];
    }
    if (exact.has(stored)) {
        read_rows(ctx, exact.of(stored), exact.inputs_of(mask), cur);
    } else if (exact.is_used()) {
        cur->src[KVTUNER_MASK_AT] = exact.inputs_of(mask).whole;
    }
    if (has_centers) {
        read_centers(ctx, center->table, exact.inputs_of(mask), cur);
    }
    for (int i = KVTUNER_MASK_AT; i < GGML_MAX_SRC; ++i) {
        if (cur->src[i]) {
            ggml_build_forward_expand(graph, cur->src[i]);
        }
    }
}

namespace {

// of the rows that queries read; what they see there goes out of the mask
void set_rows(const llama_kv_cache_context & context, const llama_ubatch & ubatch, ggml_tensor * mask) {
    kvtuner_exact_rows & exact = kvtuner_cache::exact(context);
    const kvtuner_exact_rows::inputs & inputs = exact.inputs_of(mask);
    const llama_kv_cache & cache = kvtuner_cache::of(context);
    kvtuner_center_blocks & blocks = kvtuner_cache::centers(cache).blocks;
    const int64_t n_cell = mask->ne[0], n_slot = inputs.seen->ne[0];
    int32_t * row = (int32_t *)inputs.rows->data;
    if (inputs.whole->buffer) {
        memcpy(inputs.whole->data, mask->data, ggml_nbytes(mask));
    }
    ggml_fp16_t *in_cache = (ggml_fp16_t *)mask->data, *in_rows = (ggml_fp16_t *)inputs.seen->data;
    std::fill(row, row + n_slot, -1);
    std::fill(in_rows, in_rows + ggml_nelements(inputs.seen), UNSEEN);
    const int64_t n_query = inputs.seen->ne[1], n_stream = inputs.seen->ne[3];
    int32_t * first_of_stream = row + inputs.rows->ne[0] - n_stream;
    std::fill(first_of_stream, first_of_stream + n_stream, 0);
    int64_t first = 0;
    for (const auto & [seq, q] : queries_of(ubatch)) {
        std::vector<slot> slots = slots_of(exact, cache.get_cells(seq), cache.get_stream(seq), seq, q);
        slots.resize(std::min<size_t>(slots.size(), n_slot - first));
        list_slots(slots, blocks, cache.get_stream(seq), row + first, row + n_slot + first);
        if (n_stream > 1) {
            first_of_stream[q.of[0] / n_query] = (int32_t)first;
        }
        for (uint32_t i : q.of) {
            move_seen(exact, slots, ubatch.pos[i], in_cache + i * n_cell, in_rows + i * n_slot + first);
        }
        first += slots.size();
    }
}

}  // namespace

void kvtuner_set_exact(const llama_kv_cache_context & context, const llama_ubatch & ubatch, ggml_tensor * mask) {
    kvtuner_exact_rows & exact = kvtuner_cache::exact(context);
    const kvtuner_exact_rows::inputs & inputs = exact.inputs_of(mask);
    if (kvtuner_cache::centers(kvtuner_cache::of(context)).blocks.is_used() && inputs.rows->buffer) {
        kvtuner_cache::copy_blocks(context, mask->ne[0], (int32_t *)inputs.rows->data + 2 * inputs.seen->ne[0]);
    }
    if (!exact.is_used() || !inputs.targets->buffer) {
        return;
    }
    int64_t * target = (int64_t *)inputs.targets->data;
    for (const kvtuner_exact_rows::cell & cell : kvtuner_cache::cells_of(context)) {
        *target++ = exact.row_of(cell);
    }
    set_rows(context, ubatch, mask);
}
