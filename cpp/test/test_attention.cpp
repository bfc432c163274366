// Attention over marked caches against a plain loop in float64: every pair of types, every head size that both can
// have, shared KV heads, odd lengths, all kinds of masks, keys less of centers, exact rows; and the same bits for any
// number of threads and with a common buffer too small to share out tokens. What is no number shows, where it is seen.
// The buffer holds no more than needed.
//
//   kvtuner-test-attention [CASES OF A PAIR AND SIZE] [SEED]

#include "attention_case.h"
#include "kvtuner-formats.h"

#include <algorithm>
#include <numeric>

namespace {

constexpr double MOST_ERROR = 1e-9;  // normalized mean squared; the bar of upstream's own tests is 5e-4

const head_sizes SIZES[] = {
    { 64, 64 },   { 80, 80 },   { 96, 96 },   { 112, 112 }, { 128, 128 }, { 192, 192 },
    { 256, 256 }, { 512, 512 }, { 192, 128 }, { 128, 192 }, { 64, 96 },   { 40, 72 },
};

bool fits(ggml_type type, int64_t size) {
    return size % ggml_blck_size(type) == 0;
}

template <typename T, size_t N>
T pick(const T (&of)[N], std::mt19937 & random) {
    return of[random() % N];
}

setting random_setting(ggml_type type_k, ggml_type type_v, head_sizes size, std::mt19937 & random) {
    setting s = {};
    s.type_k = type_k;
    s.type_v = type_v;
    s.size = size;
    s.group = pick({ 1, 2, 3, 4, 5, 6, 7, 8 }, random);
    s.n_head_kv = pick({ 1, 2, 3 }, random);
    s.n_stream = pick({ 1, 1, 2 }, random);
    s.n_query = pick({ 1, 1, 2, 5, 16, 33 }, random);
    s.n_token = pick({ 1, 31, 64, 113, 257, 301 }, random);
    s.mask = (mask_kind)(random() % N_MASKS);
    s.scale = 1 / std::sqrt((float)size.k);
    s.max_bias = s.mask == NO_MASK ? 0.0f : pick({ 0.0f, 0.0f, 8.0f }, random);
    s.softcap = pick({ 0.0f, 0.0f, 30.0f }, random);
    s.has_sinks = random() % 3 == 0;
    s.n_center = pick({ 0, 0, 1, 3, 16, 37 }, random);
    s.n_slot = pick({ 0, 0, 1, 36, 97 }, random);
    s.type_exact = fits(GGML_TYPE_Q8_0, size.k) && fits(GGML_TYPE_Q8_0, size.v) && random() % 2 ? GGML_TYPE_Q8_0
                                                                                                : GGML_TYPE_F16;
    return s;
}

std::vector<double> row_of(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    const char * row = (const char *)t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
    std::vector<float> values(t->ne[0]);
    if (t->type == GGML_TYPE_F32) {
        memcpy(values.data(), row, values.size() * sizeof(float));
    } else {
        ggml_get_type_traits(t->type)->to_float(row, values.data(), values.size());
    }
    return std::vector<double>(values.begin(), values.end());
}

double slope_of(const setting & s, int64_t head) {
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
std::vector<double> with_center(const attention_case & c, std::vector<double> k, const std::vector<int32_t> & blocks,
                                int64_t i, int64_t head_kv) {
    if (c.centers) {
        const std::vector<double> center = row_of(c.centers, blocks[i], 0, 0);
        for (int64_t j = 0; j < c.s.size.k; ++j) {
            k[j] += center[head_kv * c.s.size.k + j];
        }
    }
    return k;
}

// of the cache, and those with exact rows
std::vector<token> tokens_of(const attention_case & c, int64_t query, int64_t head_kv, int64_t stream) {
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
std::vector<double> expected_row(const attention_case & c, int64_t query, int64_t head, int64_t stream) {
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
double error_of(const attention_case & c, const std::vector<float> & got, std::mt19937 & random) {
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

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return memcmp(a.data(), b.data(), b.size() * sizeof(float)) == 0;
}

struct tally {
    int n_cases = 0, n_failed = 0;
    double worst = 0;

    void run(const setting & s, std::mt19937 & random) {
        attention_case c(s, random);
        const std::vector<float> got = c.run(1);
        const double error = error_of(c, got, random);
        ++n_cases;
        worst = std::max(worst, error);
        bool is_right = error <= MOST_ERROR;
        for (int n_threads : { 2, 3, 5 }) {
            const std::vector<float> again = c.run(n_threads);
            is_right = is_right && same_bits(again, got);
        }
        is_right = is_right && same_bits(c.run(3, false), got);
        if (!is_right) {
            ++n_failed;
            printf("FAIL error %.2e or other bits: %s\n", error, s.text().c_str());
        }
    }
};

}  // namespace

int main(int argc, char ** argv) {
    const int n_each = argc > 1 ? atoi(argv[1]) : 2;
    std::mt19937 random(argc > 2 ? atoi(argv[2]) : 1);
    printf("%s\n", cpu_library());
    tally all;
    for (ggml_type type_k : KVTUNER_CACHE_TYPES) {
        for (ggml_type type_v : KVTUNER_CACHE_TYPES) {
            for (const head_sizes & size : SIZES) {
                for (int i = 0; i < n_each && fits(type_k, size.k) && fits(type_v, size.v); ++i) {
                    all.run(random_setting(type_k, type_v, size, random), random);
                }
            }
        }
    }
    const bool is_right = edges_are_right(random);
    printf("%d cases, worst normalized error %.2e, %d failures\n", all.n_cases, all.worst, all.n_failed);
    return all.n_failed != 0 || !is_right;
}
