#include "kvtuner-cuda-node.cuh"

#include "kvtuner-cuda-exact-types.h"
#include "kvtuner-mark.h"

#include <algorithm>
#include <cstring>

namespace kvtuner::cuda {

namespace {

bool fits(const ggml_tensor * side) {
    return side->nb[0] == ggml_type_size(side->type) && side->ne[0] % ggml_blck_size(side->type) == 0;
}

bool are_exact_rows_taken(const ggml_tensor * node) {
    const ggml_tensor * const * rows = node->src + KVTUNER_EXACT_AT;
    return !kvtuner_has_exact(node) ||
           (is_exact_type(rows[0]->type) && is_exact_type(rows[1]->type) && fits(rows[0]) && fits(rows[1]));
}

cached_side side_of(const ggml_tensor * t) {
    return { (const char *)t->data, { (int64_t)t->nb[1], (int64_t)t->nb[2], (int64_t)t->nb[3] }, *kind_of(t->type) };
}

token_source source_of(const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * mask, int64_t n_tokens) {
    token_source s = {};
    s.k = side_of(k);
    s.v = side_of(v);
    s.mask = (const half *)mask->data;
    s.mask_query = (int64_t)mask->nb[1] / 2;
    s.mask_stream = mask->ne[3] == 1 ? 0 : (int64_t)mask->nb[3] / 2;
    s.n_tokens = (int)n_tokens;
    return s;
}

void set_sources(const ggml_tensor * node, node_args & args) {
    const ggml_tensor * const * exact = node->src + KVTUNER_EXACT_AT;
    const kvtuner_integers integers = kvtuner_integers_of(node);
    args.cache = source_of(node->src[1], node->src[2], node->src[3], node->src[1]->ne[1]);
    args.cache.blocks = integers.cell_blocks;
    args.cache.blocks_stream = args.cache.n_tokens;
    if (kvtuner_has_exact(node)) {
        args.exact = source_of(exact[0], exact[1], exact[2], exact[2]->ne[0]);
        args.exact.k.of.stream = args.exact.v.of.stream = 0;
        args.exact.blocks = integers.slot_blocks;
        args.exact_rows = integers.rows;
    }
    if (const ggml_tensor * centers = node->src[KVTUNER_CENTERS_AT]) {
        args.centers = (const half *)centers->data;
        args.centers_block = (int64_t)centers->nb[1] / 2;
    }
}

void set_scores(const ggml_tensor * node, node_args & args) {
    float scale, cap;
    memcpy(&scale, node->op_params, sizeof(float));
    memcpy(&args.max_bias, (const float *)node->op_params + 1, sizeof(float));
    memcpy(&cap, (const float *)node->op_params + 2, sizeof(float));
    args.q_scale = cap > 0 ? scale / cap : scale * LOG2_E;
    args.cap = cap * LOG2_E;
}

void set_merge(const ggml_tensor * node, const rotations & around, node_args & args) {
    args.merge.sinks = node->src[4] ? (const float *)node->src[4]->data : nullptr;
    args.merge.out = (float *)(around.out ? around.out : node)->data;
    args.merge.rotation = (int)around.out_length;
    args.merge.n_query = args.n_query;
    args.merge.n_head_kv = args.n_head_kv;
    args.merge.group = args.group;
}

}  // namespace

std::optional<cache_kind> kind_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
            return cache_kind::F16;
        case GGML_TYPE_Q8_0:
            return cache_kind::Q8_0;
        case GGML_TYPE_Q5_0:
            return cache_kind::Q5_0;
        case GGML_TYPE_Q4_0:
            return cache_kind::Q4_0;
        case GGML_TYPE_IQ4_NL:
            return cache_kind::IQ4_NL;
        case GGML_TYPE_Q3_NL:
            return cache_kind::Q3_NL;
        case GGML_TYPE_Q2_NL:
            return cache_kind::Q2_NL;
        default:
            return std::nullopt;
    }
}

bool is_read(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    return q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && q->nb[1] % 16 == 0 && q->nb[2] % 16 == 0 &&
           kind_of(k->type) && kind_of(v->type) && fits(k) && fits(v) && mask && mask->type == GGML_TYPE_F16 &&
           mask->ne[2] == 1 && (mask->ne[3] == 1 || mask->ne[3] == q->ne[3]) && mask->nb[1] % 16 == 0 &&
           mask->ne[1] >= q->ne[1] && k->ne[1] % TOKENS == 0 && k->ne[3] == q->ne[3] && are_exact_rows_taken(node);
}

void set_node(const ggml_tensor * node, const rotations & around, node_args & args) {
    const ggml_tensor *q = node->src[0], *k = node->src[1];
    args.q = (const char *)(around.q ? around.q : q)->data;
    args.q_rotation = (int)around.q_length;
    args.q_query = (int64_t)q->nb[1];
    args.q_head = (int64_t)q->nb[2];
    args.q_stream = (int64_t)q->nb[3];
    args.n_query = (int)q->ne[1];
    args.n_head_kv = (int)k->ne[2];
    args.group = (int)(q->ne[2] / k->ne[2]);
    set_sources(node, args);
    set_scores(node, args);
    set_merge(node, around, args);
}

// The longest chunk that rows can be copied in: it divides all these numbers of bytes. 0: there is none.
int chunk_for(std::initializer_list<int64_t> numbers) {
    for (int chunk : { 16, 8, 4 }) {
        if (std::all_of(numbers.begin(), numbers.end(), [&](int64_t n) { return n % chunk == 0; })) {
            return chunk;
        }
    }
    return 0;
}

divisor divisor_of(int d) {
    return { d, (uint32_t)((((uint64_t)1 << 32) + d - 1) / d) };
}

}  // namespace kvtuner::cuda
