#include "kvtuner-attention-tile.h"

#include "kvtuner-gemm.h"
#include "kvtuner-sums.h"

#include "ggml-cpu.h"

namespace kvtuner {

namespace {

constexpr int32_t SLACK = 8;  // weights up to 2^SLACK or so do no harm, and spare most moves of a reference

// the rows of a tile, of their values those from `first` on
row_range rows_of(const tile & t, const ggml_tensor * cache, const block & b, int64_t first, int64_t n_value) {
    const source & from = *t.from;
    const char * data = at(cache, from.rows ? 0 : t.token, b.head_kv, from.rows ? 0 : b.stream);
    return { data + ggml_row_size(cache->type, first),
             (int64_t)cache->nb[1],
             t.n,
             n_value,
             (int64_t)ggml_row_size(cache->type, n_value),
             from.rows ? from.rows + t.token : nullptr };
}

const uint16_t * mask_of(const block & b, const tile & of, int64_t query) {
    const ggml_tensor * all = of.from->mask;
    return (const uint16_t *)at(all, b.first + query, 0, b.stream % all->ne[3]) + of.token;
}

}  // namespace

void prefetch_scattered(const problem & p, const tile & t, const block & b) {
    if (!t.from->rows || b.n_row > FEW_ROWS) {
        return;
    }
    const row_range k = rows_of(t, t.from->k, b, 0, p.size_k), v = rows_of(t, t.from->v, b, 0, p.size_v);
    for (int64_t i = 0; i < t.n; ++i) {
        prefetch_row(k, i);
        prefetch_row(v, i);
    }
}

void scorer::begin(const problem & p, const block & of) {
    b = of;
    n_tile = tile_tokens(p.size_k, b);
    centers.begin(p, b);
    queries.resize(b.n_row * p.size_k);
    keys.resize(n_tile * p.size_k);
    slopes.resize(b.n_row);
    for (int64_t r = 0; r < b.n_row; ++r) {
        const float * row = (const float *)at(p.q, b.query(r), b.head(p, r), b.stream);
        for (int64_t i = 0; i < p.size_k; ++i) {
            queries[r * p.size_k + i] = row[i] * p.scale;
        }
        slopes[r] = r % b.n_query ? slopes[r - 1] : slope_of(p, b.head(p, r)) * LOG2E;
    }
}

seen_tile seen_of(const block & b, const tile & of) {
    constexpr uint16_t UNSEEN = 0xfc00;  // minus infinity
    if (!of.from->mask) {
        return { of, false };
    }
    uint16_t hidden[MOST_TOKENS], any[MOST_TOKENS];  // of each token: from all queries; what queries add to its score
    std::fill(hidden, hidden + of.n, 1);
    std::fill(any, any + of.n, 0);
    for (int64_t i = 0; i < b.n_query; ++i) {
        const uint16_t * mask = mask_of(b, of, i);
        for (int64_t t = 0; t < of.n; t += 32) {
            __builtin_prefetch(mask + of.n + t);  // the next tile's
        }
        for (int64_t t = 0; t < of.n; ++t) {
            any[t] |= mask[t];
            hidden[t] &= mask[t] == UNSEEN;
        }
    }
    int64_t begin = 0, end = of.n;
    while (end > 0 && hidden[end - 1]) {
        --end;
    }
    while (begin < end && hidden[begin]) {
        ++begin;
    }
    const bool has_bias = std::any_of(any + begin, any + end, [](uint16_t bits) { return bits != 0; });
    return { { of.from, of.token + begin, end - begin }, has_bias };
}

void scorer::score(const problem & p, const seen_tile & seen, float * scores, int64_t wide) {
    const tile & of = seen.t;
    if (seen.has_bias) {
        read_bias(of);
    }
    const int64_t n = of.n, n_padded = round_up(n, TILE_UNIT);
    of.from->read_k(rows_of(of, of.from->k, b, 0, p.size_k), keys.data(), n_tile);
    multiply(p, of, scores, wide, n_padded);
    for (int64_t r = 0; p.softcap != 0 && r < b.n_row; ++r) {
        for (int64_t t = 0; t < n; ++t) {
            scores[r * wide + t] = p.softcap * LOG2E * std::tanh(scores[r * wide + t]);
        }
    }
    if (seen.has_bias) {
        add_bias(scores, wide, n_padded);
    }
    for (int64_t r = 0; n < n_padded && r < b.n_row; ++r) {
        std::fill(scores + r * wide + n, scores + r * wide + n_padded, -INFINITY);
    }
}

void scorer::multiply(const problem & p, const tile & of, float * scores, int64_t wide, int64_t n) {
    const matrix left = { queries.data(), p.size_k };
    const auto add = [&](auto multiply_from, const float * starts) {
        multiply_from(scores, wide, left, keys.data(), n_tile, b.n_row, n, p.size_k, starts);
    };
    if (!of.from->blocks) {
        add(product<from::zero>, nullptr);
    } else if (const float * starts = centers.of_tile(p, queries.data(), of)) {
        add(product<from::starts>, starts);
    } else {
        centers.fill(p, queries.data(), of, scores, wide, n);
        add(product<from::sums>, nullptr);
    }
}

// the mask of a tile as floats, [query][token]
void scorer::read_bias(const tile & of) {
    bias.resize(n_tile * b.n_query);
    for (int64_t i = 0; i < b.n_query; ++i) {
        ggml_cpu_fp16_to_fp32(mask_of(b, of, i), &bias[i * n_tile], of.n);
    }
}

// a token that is not seen has no score, be its key broken
void scorer::add_bias(float * scores, int64_t wide, int64_t n) const {
    const vec unseen = splat(-INFINITY);
    for (int64_t r = 0; r < b.n_row; ++r) {
        const float * row = &bias[r % b.n_query * n_tile];
        const vec slope = splat(slopes[r]);
        for (int64_t t = 0; t < n; t += LANES) {
            float * score = scores + r * wide + t;
            const vec x = load<vec>(row + t);
            store(score, select(x == unseen, unseen, multiply_add(slope, x, load<vec>(score))));
        }
    }
}

bool raise_references(const float * scores, int64_t wide, int64_t n, int64_t n_row, int32_t * references,
                      float * factors) {
    bool has_moved = false;
    for (int64_t r = 0; r < n_row; ++r) {
        vec most = splat(LOWEST);
        for (int64_t t = 0; t < n; t += LANES) {
            most = vmax(most, load<vec>(scores + r * wide + t));
        }
        const int32_t top = (int32_t)std::nearbyint(std::min(largest(most), HIGHEST));
        const int32_t before = references[r];
        references[r] = top > before + SLACK ? top : before;
        factors[r] = power_of_two(before - references[r]);
        has_moved = has_moved || references[r] != before;
    }
    return has_moved;
}

void weigh(float * scores, int64_t wide, int64_t n, int64_t n_row, const int32_t * references) {
    for (int64_t r = 0; r < n_row; ++r) {
        const int32_t reference = references[r];
        for (int64_t t = 0; t < n; t += LANES) {
            float * score = scores + r * wide + t;
            store(score, exp2_of(load<vec>(score), reference));
        }
    }
}

void accumulator::begin(const problem & p, const block & of, int64_t first_channel, int64_t n) {
    b = of;
    first = first_channel;
    n_channel = n;
    wide = round_up(n, LANES);
    values.resize(tile_tokens(p.size_v, b) * wide);
    if (wide != n_channel) {
        std::fill(values.begin(), values.end(), 0.0f);
    }
    output.assign(b.n_row * wide, 0.0f);
    sums.assign(b.n_row, 0.0f);
}

void accumulator::scale(const float * factors) {
    for (int64_t r = 0; r < b.n_row; ++r) {
        for (int64_t i = 0; factors[r] != 1 && i < wide; ++i) {
            output[r * wide + i] *= factors[r];
        }
        sums[r] *= factors[r];
    }
}

void accumulator::add(const problem & p, const tile & of, const float * weights, int64_t n_apart) {
    add_weights(weights, n_apart, of.n, b.n_row, sums.data());
    const int64_t n_tile = tile_tokens(p.size_v, b);
    for (int64_t t = 0; t < of.n; t += n_tile) {
        const tile now = { of.from, of.token + t, std::min(n_tile, of.n - t) };
        of.from->read_v(rows_of(now, of.from->v, b, first, n_channel), values.data(), wide);
        product<from::sums>(output.data(), wide, { weights + t, n_apart }, values.data(), wide, b.n_row, wide, now.n);
    }
}

void accumulator::finish(const problem & p, const int32_t * references) const {
    for (int64_t r = 0; r < b.n_row; ++r) {
        float factor = 1;
        float sum = sums[r];
        if (p.sinks) {
            const float sink = ((const float *)p.sinks->data)[b.head(p, r)] * LOG2E;
            const int32_t n = (int32_t)std::rint(sink);
            const int32_t top = std::max(references[r], n);
            factor = std::ldexp(1.0f, references[r] - top);
            sum = sum * factor + std::ldexp(std::exp2(sink - (float)n), n - top);
        }
        factor = sum == 0 ? 0 : factor / sum;
        float * out = (float *)((char *)p.out->data + b.stream * p.out->nb[3] + b.query(r) * p.out->nb[2] +
                                b.head(p, r) * p.out->nb[1]);
        for (int64_t i = 0; i < n_channel; ++i) {
            out[first + i] = output[r * wide + i] * factor;
        }
    }
}

}  // namespace kvtuner
