// What a case of attention should give: a plain loop in float64.
#pragma once

#include "attention_case.h"

#include <algorithm>
#include <numeric>

inline std::vector<double> row_of(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    const char * row = (const char *)t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
    std::vector<float> values(t->ne[0]);
    if (t->type == GGML_TYPE_F32) {
        memcpy(values.data(), row, values.size() * sizeof(float));
    } else {
        ggml_get_type_traits(t->type)->to_float(row, values.data(), values.size());
    }
    return std::vector<double>(values.begin(), values.end());
}

inline double slope_of(const setting & s, int64_t head) {
    if (s.max_bias == 0) {
        return 1;
    }
    int64_t n = 1;
    while (2 * n <= s.n_head()) {
        n *= 2;
    }
    const double exponent = head < n ? (double)(head + 1) / n : (double)(2 * (head - n) + 1) / (2 * n);
    return std::pow(2.0, -s.max_bias * exponent);
}

// one that a query reads, and what its mask adds to the score
struct token {
    std::vector<double> k, v;
    double bias;
};

// a key of a KV head with the center that it is less of
inline std::vector<double> with_center(const attention_case & c, std::vector<double> k,
                                       const std::vector<int32_t> & blocks, int64_t i, int64_t head_kv) {
    if (c.centers) {
        const std::vector<double> center = row_of(c.centers, blocks[i], 0, 0);
        for (int64_t j = 0; j < c.s.size.k; ++j) {
            k[j] += center[head_kv * c.s.size.k + j];
        }
    }
    return k;
}

// of the cache, and those with exact rows
inline std::vector<token> tokens_of(const attention_case & c, int64_t query, int64_t head_kv, int64_t stream) {
    const int64_t n = c.s.n_token;
    std::vector<double> bias = c.mask ? row_of(c.mask, query, 0, stream) : std::vector<double>(n);
    std::vector<token> tokens;
    for (int64_t t = 0; t < n; ++t) {
        tokens.push_back({ with_center(c, row_of(c.k, t, head_kv, stream), c.cell_blocks, stream * n + t, head_kv),
                           row_of(c.v, t, head_kv, stream), bias[t] });
    }
    for (size_t i = 0; i < c.slot_rows.size() && c.slot_rows[i] >= 0; ++i) {
        tokens.push_back({ with_center(c, row_of(c.exact_k, c.slot_rows[i], head_kv, 0), c.slot_blocks, i, head_kv),
                           row_of(c.exact_v, c.slot_rows[i], head_kv, 0), row_of(c.exact_mask, query, 0, stream)[i] });
    }
    return tokens;
}

// one query of one head
inline std::vector<double> expected_row(const attention_case & c, int64_t query, int64_t head, int64_t stream) {
    const setting & s = c.s;
    const std::vector<double> q = row_of(c.q, query, head, stream);
    const std::vector<token> tokens = tokens_of(c, query, head / s.group, stream);
    std::vector<double> scores;
    double most = c.sinks ? ((const float *)c.sinks->data)[head] : -INFINITY;
    for (const token & t : tokens) {
        double score = std::inner_product(q.begin(), q.end(), t.k.begin(), 0.0) * s.scale;
        score = s.softcap == 0 ? score : s.softcap * std::tanh(score / s.softcap);
        scores.push_back(score + (t.bias == 0 ? 0 : slope_of(s, head) * t.bias));
        most = std::max(most, scores.back());
    }
    std::vector<double> out(s.size.v);
    double sum = c.sinks ? std::exp(((const float *)c.sinks->data)[head] - most) : 0;
    for (size_t t = 0; t < tokens.size() && most > -INFINITY; ++t) {
        const double weight = std::exp(scores[t] - most);
        sum += weight;
        for (int64_t i = 0; i < s.size.v; ++i) {
            out[i] += weight * tokens[t].v[i];
        }
    }
    for (double & x : out) {
        x = sum > 0 ? x / sum : 0;
    }
    return out;
}

// normalized mean squared error of some rows
inline double error_of(const attention_case & c, const std::vector<float> & got, std::mt19937 & random) {
    double error = 0, power = 1e-30;
    for (int n = 0; n < 6; ++n) {
        const int64_t query = random() % c.s.n_query, head = random() % c.s.n_head(), stream = random() % c.s.n_stream;
        const std::vector<double> expected = expected_row(c, query, head, stream);
        const float * row = &got[((stream * c.s.n_query + query) * c.s.n_head() + head) * c.s.size.v];
        for (int64_t i = 0; i < c.s.size.v; ++i) {
            error += (row[i] - expected[i]) * (row[i] - expected[i]);
            power += expected[i] * expected[i];
        }
    }
    return error / power;
}
