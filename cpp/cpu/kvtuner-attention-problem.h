// One FLASH_ATTN_EXT node: its sizes and settings, and the blocks of query rows that it is cut into.
#pragma once

#include "kvtuner-mark.h"
#include "kvtuner-rows.h"
#include "kvtuner-simd.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvtuner {

constexpr float LOG2E = 1.44269504f;

// where tokens are read from: the cache, and what is kept of some of its tokens as it was before
struct source {
    const ggml_tensor *k, *v, *mask;
    const int32_t * rows;      // of each token, of all streams; null where the tokens lie in order, each stream's apart
    const int32_t * blocks;    // of positions, of each token; null where keys are not less of their center
    read_rows read_k, read_v;  // keys column by column: tokens lie side by side
    int64_t n_token;
};

struct problem {
    const ggml_tensor *q, *sinks, *centers;  // centers: [size_k * KV heads, blocks of positions], or null
    ggml_tensor * out;
    source sources[2];
    int n_source;
    int64_t size_k, size_v;  // values of a head
    int64_t n_query, n_head, n_head_kv, n_stream;
    int64_t n_token;                 // of all sources
    int64_t group;                   // query heads of a KV head
    float scale, max_bias, softcap;  // scale gives scores in powers of two, or in units of the cap where there is one
};

inline source source_of(const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * mask, int64_t n_token) {
    return { k,
             v,
             mask,
             nullptr,
             nullptr,
             kvtuner_row_reader_of(k->type)->columns,
             kvtuner_row_reader_of(v->type)->rows,
             n_token };
}

inline problem problem_of(ggml_tensor * node) {
    problem p = {};
    const ggml_tensor *k = node->src[1], *v = node->src[2];
    const ggml_tensor * const * exact = node->src + KVTUNER_EXACT_AT;
    const kvtuner_integers integers = kvtuner_integers_of(node);
    p.q = node->src[0];
    p.sinks = node->src[4];
    p.out = node;
    p.centers = node->src[KVTUNER_CENTERS_AT];
    p.sources[p.n_source++] = source_of(k, v, node->src[3], k->ne[1]);
    if (kvtuner_has_exact(node)) {
        source & rows = p.sources[p.n_source++] = source_of(exact[0], exact[1], exact[2], exact[2]->ne[0]);
        rows.rows = integers.rows;
        rows.blocks = integers.slot_blocks;
    }
    p.sources[0].blocks = integers.cell_blocks;
    for (int i = 0; i < p.n_source; ++i) {
        p.n_token += p.sources[i].n_token;
    }
    p.size_k = k->ne[0];
    p.size_v = v->ne[0];
    p.n_query = p.q->ne[1];
    p.n_head = p.q->ne[2];
    p.n_stream = p.q->ne[3];
    p.n_head_kv = k->ne[2];
    p.group = p.n_head / p.n_head_kv;
    memcpy(&p.scale, node->op_params, sizeof(float));
    memcpy(&p.max_bias, node->op_params + 1, sizeof(float));
    memcpy(&p.softcap, node->op_params + 2, sizeof(float));
    p.scale = p.softcap != 0 ? p.scale / p.softcap : p.scale * LOG2E;
    return p;
}

// Leaves out the tokens at the end of a source that have no row: their row is negative. For a node whose inputs are
// set.
inline void leave_out_the_rest(problem & p) {
    for (int i = 0; i < p.n_source; ++i) {
        source & s = p.sources[i];
        if (s.rows) {
            const int64_t n = s.n_token;
            s.n_token = std::partition_point(s.rows, s.rows + n, [](int32_t row) { return row >= 0; }) - s.rows;
            p.n_token += s.n_token - n;
        }
    }
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

// some tokens of a source
struct tile {
    const source * from;
    int64_t token, n;
};

// Tiles of n_tile tokens or, at the end of a source, fewer.
inline int64_t tiles_of(const source & s, int64_t n_tile) {
    return (s.n_token + n_tile - 1) / n_tile;
}

inline int64_t n_tiles(const problem & p, int64_t n_tile) {
    int64_t n = 0;
    for (int i = 0; i < p.n_source; ++i) {
        n += tiles_of(p.sources[i], n_tile);
    }
    return n;
}

inline tile tile_at(const problem & p, int64_t i, int64_t n_tile) {
    const source * from = p.sources;
    for (; i >= tiles_of(*from, n_tile); ++from) {
        i -= tiles_of(*from, n_tile);
    }
    return { from, i * n_tile, std::min(n_tile, from->n_token - i * n_tile) };
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
