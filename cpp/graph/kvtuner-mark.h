// What nodes of a graph say to kernels of ours.
#pragma once

#include "ggml.h"

#include <stdint.h>

#define KVTUNER_MARK 0x6b767475
#define KVTUNER_MARK_AT 5  // of the parameters of FLASH_ATTN_EXT the first that upstream leaves free; SET_ROWS has none

// Attention over a cache that follows a plan: kernels of ours take such nodes alone. The cache has the mark first; the
// node takes it over when the graph is built, since a node may later read a copy on another device.
static inline void kvtuner_mark(struct ggml_tensor * cache) {
    cache->op_params[KVTUNER_MARK_AT] = KVTUNER_MARK;
}

static inline void kvtuner_mark_attention(struct ggml_tensor * node, const struct ggml_tensor * k) {
    const struct ggml_tensor * cache = k->view_src ? k->view_src : k;
    if (cache->op == GGML_OP_NONE) {
        node->op_params[KVTUNER_MARK_AT] = cache->op_params[KVTUNER_MARK_AT];
    }
}

// Sources of the node that upstream leaves free: rows of keys and of values that some tokens of the cache had before
// they were quantized, a mask for these tokens, and integers, first the row of each; negative ones follow the last. The
// mask of the cache hides them from the queries that see them there. The integers may end with the first token of each
// stream, which sees its share of all tokens at most, from there on.
#define KVTUNER_MASK_AT 3  // upstream's own
#define KVTUNER_EXACT_AT 5
#define KVTUNER_INTEGERS_AT 8

// Centers that the keys are less of, one for each block of positions: f16 [head size * KV heads, blocks]. The integers
// then go on with the blocks: of each of the tokens with rows, and of each token of the cache, [tokens, streams].
#define KVTUNER_CENTERS_AT 9

static inline bool kvtuner_has_centers(const struct ggml_tensor * node) {
    return node->src[KVTUNER_CENTERS_AT] != NULL;
}

static inline bool kvtuner_has_exact(const struct ggml_tensor * node) {
    return node->src[KVTUNER_EXACT_AT] != NULL;
}

// The integers of a node, part by part; null for those that it does not have.
struct kvtuner_integers {
    const int32_t * rows;         // of each slot: a token with exact rows
    const int32_t * slot_blocks;  // of positions, of each slot
    const int32_t * cell_blocks;  // and of each token of the cache
    const int32_t * first_slots;  // of each stream
};

static inline struct kvtuner_integers kvtuner_integers_of(const struct ggml_tensor * node) {
    struct kvtuner_integers found = { NULL, NULL, NULL, NULL };
    const struct ggml_tensor * integers = node->src[KVTUNER_INTEGERS_AT];
    if (!integers) {
        return found;
    }
    const int32_t *first = (const int32_t *)integers->data, *next = first;
    const int64_t n_slot = kvtuner_has_exact(node) ? node->src[KVTUNER_EXACT_AT + 2]->ne[0] : 0;
    const int64_t n_stream = node->src[0]->ne[3];
    if (n_slot > 0) {
        found.rows = next;
        next += n_slot;
    }
    if (kvtuner_has_centers(node)) {
        found.slot_blocks = next;
        found.cell_blocks = next + n_slot;
        next += n_slot + node->src[1]->ne[1] * n_stream;
    }
    if (n_slot > 0 && next - first + n_stream <= integers->ne[0]) {
        found.first_slots = next;
    }
    return found;
}

static inline bool kvtuner_is_marked(const struct ggml_tensor * node) {
    return node->op_params[KVTUNER_MARK_AT] == KVTUNER_MARK;
}

// SET_ROWS into a cache of values, whose blocks of q2_nl and q3_nl have another scale than those of keys
static inline struct ggml_tensor * kvtuner_mark_values(struct ggml_tensor * set_rows) {
    set_rows->op_params[KVTUNER_MARK_AT] = KVTUNER_MARK;
    return set_rows;
}

static inline bool kvtuner_is_of_values(const struct ggml_tensor * set_rows) {
    return kvtuner_is_marked(set_rows);
}
