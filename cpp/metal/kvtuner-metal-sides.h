// What kernels of the attention on Metal are told of the tensors of a node.
#pragma once

#include "kvtuner-mark.h"
#include "kvtuner-metal-attention-args.h"

#include "ggml.h"

#include <optional>

// null for a type that no cache has
inline std::optional<kvtuner_metal_kind> kvtuner_metal_kind_of(ggml_type type) {
    switch (type) {
#define KVTUNER_NUMBER(TYPE, name) \
    case GGML_TYPE_##TYPE:         \
        return KVTUNER_METAL_##TYPE;
#define KVTUNER_BLOCK(TYPE, name, size) KVTUNER_NUMBER(TYPE, name)
#include "kvtuner-formats.def"
        default:
            return std::nullopt;
    }
}

// of a cache, or of rows beside it, which all streams share
inline kvtuner_metal_strides kvtuner_metal_strides_of(const ggml_tensor * side) {
    return { side->nb[1], side->nb[2], side->ne[3] == 1 ? 0 : side->nb[3] };
}

// whether lanes can read its rows four values at a time
inline bool kvtuner_metal_reads(const ggml_tensor * side) {
    const bool is_block = ggml_is_quantized(side->type);
    const size_t alignment = is_block ? 2 : 4 * ggml_type_size(side->type);
    return kvtuner_metal_kind_of(side->type) && side->nb[0] == ggml_type_size(side->type) &&
           side->ne[0] % (is_block ? ggml_blck_size(side->type) : 4) == 0 && side->nb[1] % alignment == 0 &&
           side->nb[2] % alignment == 0 && side->nb[3] % alignment == 0;
}

// all that a node reads beside the cache can be read
inline bool kvtuner_metal_reads_beside(const ggml_tensor * node) {
    const ggml_tensor * const * exact = node->src + KVTUNER_EXACT_AT;
    return !kvtuner_has_exact(node) || (kvtuner_metal_reads(exact[0]) && kvtuner_metal_reads(exact[1]));
}

// the caches fit each other and the queries, and there is a mask of all heads
inline bool kvtuner_metal_has_usual_shape(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    return q->type == GGML_TYPE_F32 && k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3] && k->ne[2] == v->ne[2] &&
           q->ne[2] % k->ne[2] == 0 && kvtuner_metal_reads(k) && kvtuner_metal_reads(v) &&
           kvtuner_metal_reads_beside(node) && mask && mask->type == GGML_TYPE_F16 && mask->ne[0] == k->ne[1] &&
           mask->ne[2] == 1 && (mask->ne[3] == 1 || mask->ne[3] == q->ne[3]);
}

// where parts of the integers of a node begin; negative for those that it does not have
struct kvtuner_metal_places {
    int32_t rows, slot_blocks, cell_blocks, first_slots;
};

inline kvtuner_metal_places kvtuner_metal_places_of(const ggml_tensor * node) {
    const ggml_tensor * integers = node->src[KVTUNER_INTEGERS_AT];
    const kvtuner_integers found = kvtuner_integers_of(node);
    const auto place = [&](const int32_t * part) {
        return part ? (int32_t)(part - (const int32_t *)integers->data) : -1;
    };
    return { place(found.rows), place(found.slot_blocks), place(found.cell_blocks), place(found.first_slots) };
}
