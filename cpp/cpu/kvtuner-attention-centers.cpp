#include "kvtuner-attention-centers.h"

#include "kvtuner-gemm.h"

namespace kvtuner {

namespace {

const int32_t * blocks_of(const tile & t, const block & b) {
    return t.from->blocks + (t.from->rows ? 0 : b.stream * t.from->n_token) + t.token;
}

// tokens from `first` on that belong to the same block of positions
int64_t run_of(const int32_t * blocks, int64_t first, int64_t n) {
    int64_t end = first + 1;
    while (end < n && blocks[end] == blocks[first]) {
        ++end;
    }
    return end - first;
}

bool is_one_run(const int32_t * blocks, int64_t n) {
    int32_t differs = 0;
    for (int64_t i = 0; i < n; ++i) {
        differs |= blocks[i] ^ blocks[0];
    }
    return differs == 0;
}

}  // namespace

void center_products::begin(const problem & p, const block & of) {
    b = of;
    now = -1;
    if (p.centers) {
        const int64_t groups = (p.centers->ne[1] + CENTERS - 1) / CENTERS;
        is_computed.assign(groups, false);
        products.resize(groups * b.n_row * CENTERS);
        centers.resize(p.size_k * CENTERS);
        rows.resize(b.n_row);
    }
}

void center_products::compute(const problem & p, const float * queries, int64_t group) {
    const int64_t first = group * CENTERS, n = std::min(CENTERS, p.centers->ne[1] - first);
    const int64_t n_bytes = ggml_row_size(p.centers->type, p.size_k);
    kvtuner_row_reader_of(p.centers->type)
            ->columns({ (const char *)p.centers->data + first * p.centers->nb[1] + b.head_kv * n_bytes,
                        (int64_t)p.centers->nb[1], n, p.size_k, n_bytes, nullptr },
                      centers.data(), CENTERS);
    product<from::zero>(&products[group * b.n_row * CENTERS], CENTERS, { queries, p.size_k }, centers.data(), CENTERS,
                        b.n_row, CENTERS, p.size_k);
    is_computed[group] = true;
}

const float * center_products::of_center(const problem & p, const float * queries, int32_t i) {
    if (i == now) {
        return rows.data();
    }
    if (!is_computed[i / CENTERS]) {
        compute(p, queries, i / CENTERS);
    }
    now = i;
    const float * first = &products[i / CENTERS * b.n_row * CENTERS + i % CENTERS];
    for (int64_t r = 0; r < b.n_row; ++r) {
        rows[r] = first[r * CENTERS];
    }
    return rows.data();
}

const float * center_products::of_tile(const problem & p, const float * queries, const tile & t) {
    const int32_t * blocks = blocks_of(t, b);
    return is_one_run(blocks, t.n) ? of_center(p, queries, *blocks) : nullptr;
}

void center_products::fill(const problem & p, const float * queries, const tile & t, float * scores, int64_t wide,
                           int64_t n) {
    const int32_t * blocks = blocks_of(t, b);
    for (int64_t i = 0, end; i < n; i = end) {
        end = i < t.n ? i + run_of(blocks, i, t.n) : n;
        const float * starts = i < t.n ? of_center(p, queries, blocks[i]) : nullptr;
        for (int64_t r = 0; r < b.n_row; ++r) {
            std::fill(scores + r * wide + i, scores + r * wide + end, starts ? starts[r] : 0);
        }
    }
}

}  // namespace kvtuner
