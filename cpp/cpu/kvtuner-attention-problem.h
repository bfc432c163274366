// One FLASH_ATTN_EXT node: its sizes and settings, and the blocks of query rows that it is cut into.
#pragma once

#include "kvtuner-rows.h"
#include "kvtuner-simd.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvtuner {

constexpr float LOG2E = 1.44269504f;

struct problem {
    const ggml_tensor *q, *k, *v, *mask, *sinks;
    ggml_tensor * out;
    read_rows read_k, read_v;  // keys column by column: tokens lie side by side
    int64_t size_k, size_v;    // values of a head
    int64_t n_query, n_head, n_head_kv, n_stream, n_token;
    int64_t group;                   // query heads of a KV head
    float scale, max_bias, softcap;  // scale gives scores in powers of two, or in units of the cap where there is one
};

inline problem problem_of(ggml_tensor * node) {
    problem p = {};
    p.q = node->src[0];
    p.k = node->src[1];
    p.v = node->src[2];
    p.mask = node->src[3];
    p.sinks = node->src[4];
    p.out = node;
    p.read_k = kvtuner_row_reader_of(p.k->type)->columns;
    p.read_v = kvtuner_row_reader_of(p.v->type)->rows;
    p.size_k = p.k->ne[0];
    p.size_v = p.v->ne[0];
    p.n_query = p.q->ne[1];
    p.n_head = p.q->ne[2];
    p.n_stream = p.q->ne[3];
    p.n_token = p.k->ne[1];
    p.n_head_kv = p.k->ne[2];
    p.group = p.n_head / p.n_head_kv;
    memcpy(&p.scale, node->op_params, sizeof(float));
    memcpy(&p.max_bias, node->op_params + 1, sizeof(float));
    memcpy(&p.softcap, node->op_params + 2, sizeof(float));
    p.scale = p.softcap != 0 ? p.scale / p.softcap : p.scale * LOG2E;
    return p;
}

inline const char * at(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return (const char *)t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

// the slope of ALiBi; 1 without
inline float slope_of(const problem & p, int64_t head) {
    if (p.max_bias <= 0) {
        return 1;
    }
    const int64_t n_log2 = (int64_t)1 << (int64_t)std::floor(std::log2((double)p.n_head));
    const float m0 = std::pow(2.0f, -p.max_bias / n_log2);
    const float m1 = std::pow(2.0f, -p.max_bias / 2 / n_log2);
    return head < n_log2 ? std::pow(m0, (float)(head + 1)) : std::pow(m1, (float)(2 * (head - n_log2) + 1));
}

// a block of queries of one KV head: row r is query `first + r % n_query` of query head `r / n_query` of the group
struct block {
    int64_t stream, head_kv, first, n_query, n_row;

    int64_t query(int64_t r) const {
        return first + r % n_query;
    }

    int64_t head(const problem & p, int64_t r) const {
        return head_kv * p.group + r / n_query;
    }
};

// the blocks of a node with up to n_query queries each
struct blocks {
    int64_t n_query, of_head, n;

    blocks(const problem & p, int64_t n_query) : n_query(n_query) {
        of_head = (p.n_query + n_query - 1) / n_query;
        n = of_head * p.n_head_kv * p.n_stream;
    }

    block at(const problem & p, int64_t i) const {
        block b = {};
        b.first = i % of_head * n_query;
        b.head_kv = i / of_head % p.n_head_kv;
        b.stream = i / of_head / p.n_head_kv;
        b.n_query = std::min(n_query, p.n_query - b.first);
        b.n_row = b.n_query * p.group;
        return b;
    }
};

}  // namespace kvtuner
