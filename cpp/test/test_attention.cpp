// Attention over marked caches against a plain loop in float64: every pair of types, every head size that both can
// have, shared KV heads, odd lengths, all kinds of masks; and the same bits for any number of threads and with a common
// buffer too small to share out tokens. What is no number shows, where it is seen. The buffer holds no more than
// needed.
//
//   kvtuner-test-attention [CASES OF A PAIR AND SIZE] [SEED]

#include "cpu_backend.h"
#include "kvtuner-formats.h"
#include "kvtuner-mark.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr double MOST_ERROR = 1e-9;  // normalized mean squared; the bar of upstream's own tests is 5e-4
constexpr float SEEN = 0, UNSEEN = -INFINITY;

struct head_sizes {
    int64_t k, v;
};

const head_sizes SIZES[] = {
    { 64, 64 },   { 80, 80 },   { 96, 96 },   { 112, 112 }, { 128, 128 }, { 192, 192 },
    { 256, 256 }, { 512, 512 }, { 192, 128 }, { 128, 192 }, { 64, 96 },   { 40, 72 },
};

enum mask_kind { NO_MASK, CAUSAL, WINDOW, HOLES, N_MASKS };

struct setting {
    ggml_type type_k, type_v;
    head_sizes size;
    int64_t group, n_head_kv, n_stream, n_query, n_token;
    mask_kind mask;
    float scale, max_bias, softcap;
    bool has_sinks;

    int64_t n_head() const {
        return group * n_head_kv;
    }

    std::string text() const {
        char line[256];
        snprintf(line, sizeof(line),
                 "K %s V %s heads %lld/%lld group %lld KV heads %lld streams %lld queries %lld tokens %lld mask %d "
                 "ALiBi %g cap %g sinks %d",
                 ggml_type_name(type_k), ggml_type_name(type_v), (long long)size.k, (long long)size.v, (long long)group,
                 (long long)n_head_kv, (long long)n_stream, (long long)n_query, (long long)n_token, mask, max_bias,
                 softcap, has_sinks);
        return line;
    }
};

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
    return s;
}

// the tensors of a case, in a context of their own
struct attention_case {
    const setting s;
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx;
    ggml_tensor *q, *k, *v, *mask = nullptr, *sinks = nullptr, *out;

    attention_case(const setting & s, std::mt19937 & random) : s(s), ctx(make_context(), ggml_free) {
        q = make(GGML_TYPE_F32, s.size.k, s.n_query, s.n_head(), random, 2);
        k = make(s.type_k, s.size.k, s.n_token, s.n_head_kv, random, 1);
        v = make(s.type_v, s.size.v, s.n_token, s.n_head_kv, random, 1);
        if (s.mask != NO_MASK) {
            make_mask(random);
        }
        out = ggml_flash_attn_ext(ctx.get(), q, k, v, mask, s.scale, s.max_bias, s.softcap);
        kvtuner_mark(out);
        if (s.has_sinks) {
            sinks = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, s.n_head());
            fill(sinks, random, 3);
            ggml_flash_attn_ext_add_sinks(out, sinks);
        }
    }

    // with the buffer of so many threads as planned, or of one
    std::vector<float> run(int n_threads, bool has_buffer = true) {
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
        memset(out->data, 0xff, ggml_nbytes(out));
        ggml_cplan plan = CPU_FUNCTION(ggml_graph_plan)(graph, has_buffer ? n_threads : 1, nullptr);
        plan.n_threads = n_threads;
        std::vector<uint8_t> buffer(plan.work_size);
        plan.work_data = buffer.data();
        CPU_FUNCTION(ggml_graph_compute)(graph, &plan);
        const float * values = (const float *)out->data;
        return std::vector<float>(values, values + ggml_nelements(out));
    }

private:
    static ggml_context * make_context() {
        return ggml_init({ (size_t)96 << 20, nullptr, false });
    }

    void fill(ggml_tensor * t, std::mt19937 & random, float scale) const {
        std::normal_distribution<float> normal;
        std::vector<float> values(ggml_nelements(t));
        for (float & x : values) {
            x = normal(random) * scale;
        }
        if (t->type == GGML_TYPE_F32) {
            memcpy(t->data, values.data(), ggml_nbytes(t));
        } else {
            CPU_FUNCTION(ggml_get_type_traits_cpu)(t->type)->from_float(values.data(), t->data, values.size());
        }
    }

    ggml_tensor * make(ggml_type type, int64_t n, int64_t n1, int64_t n2, std::mt19937 & random, float scale) {
        ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), type, n, n1, n2, s.n_stream);
        fill(t, random, scale);
        return t;
    }

    bool sees(int64_t query, int64_t token, std::mt19937 & random) const {
        const int64_t position = s.n_token - s.n_query + query;
        switch (s.mask) {
            case CAUSAL:
                return token <= position;
            case WINDOW:
                return token <= position && token > position - 20;
            default:
                return query % 5 != 3 && random() % 3 != 0;  // some queries see nothing
        }
    }

    void make_mask(std::mt19937 & random) {
        mask = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, s.n_token, s.n_query, 1, s.n_stream);
        ggml_fp16_t * values = (ggml_fp16_t *)mask->data;
        for (int64_t row = 0; row < s.n_query * s.n_stream; ++row) {
            for (int64_t token = 0; token < s.n_token; ++token) {
                const int64_t query = row % s.n_query;
                const float distance = s.max_bias > 0 ? -0.01f * std::abs((float)(token - query)) : SEEN;
                *values++ = ggml_fp32_to_fp16(sees(query, token, random) ? distance : UNSEEN);
            }
        }
    }
};

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

// one query of one head
std::vector<double> expected_row(const attention_case & c, int64_t query, int64_t head, int64_t stream) {
    const setting & s = c.s;
    const std::vector<double> q = row_of(c.q, query, head, stream);
    std::vector<double> scores(s.n_token);
    double most = c.sinks ? ((const float *)c.sinks->data)[head] : -INFINITY;
    for (int64_t t = 0; t < s.n_token; ++t) {
        const std::vector<double> k = row_of(c.k, t, head / s.group, stream);
        double score = 0;
        for (int64_t i = 0; i < s.size.k; ++i) {
            score += q[i] * k[i];
        }
        score *= s.scale;
        score = s.softcap == 0 ? score : s.softcap * std::tanh(score / s.softcap);
        scores[t] = score + (c.mask ? slope_of(s, head) * row_of(c.mask, query, 0, stream)[t] : 0);
        most = std::max(most, scores[t]);
    }
    std::vector<double> out(s.size.v);
    double sum = c.sinks ? std::exp(((const float *)c.sinks->data)[head] - most) : 0;
    for (int64_t t = 0; t < s.n_token && most > -INFINITY; ++t) {
        const std::vector<double> v = row_of(c.v, t, head / s.group, stream);
        const double weight = std::exp(scores[t] - most);
        sum += weight;
        for (int64_t i = 0; i < s.size.v; ++i) {
            out[i] += weight * v[i];
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

bool fits(ggml_type type, int64_t size) {
    return size % ggml_blck_size(type) == 0;
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

// a setting without extras: q8_0 keys and q4_0 values of 64 channels, one stream, causal
setting plain_setting(int64_t group, int64_t n_head_kv, int64_t n_query, int64_t n_token) {
    setting s = {};
    s.type_k = GGML_TYPE_Q8_0;
    s.type_v = GGML_TYPE_Q4_0;
    s.size = { 64, 64 };
    s.group = group;
    s.n_head_kv = n_head_kv;
    s.n_stream = 1;
    s.n_query = n_query;
    s.n_token = n_token;
    s.mask = CAUSAL;
    s.scale = 0.125f;
    return s;
}

bool is_broken(const std::vector<float> & values, int64_t row, int64_t size) {
    return std::all_of(&values[row * size], &values[row * size] + size, [](float x) { return std::isnan(x); });
}

// A query that is no number gives no number, and so does a key, for the queries that see it; other rows stay.
bool broken_numbers_show(std::mt19937 & random) {
    bool is_right = true;
    for (int64_t n_query : { 1, 5 }) {
        const setting s = plain_setting(3, 2, n_query, 300);
        attention_case c(s, random);
        const std::vector<float> before = c.run(2);
        const int64_t head = 4, query = n_query - 1;
        float & part = ((float *)c.q->data)[(head * n_query + query) * s.size.k + 7];
        const float kept = part;
        part = NAN;
        std::vector<float> after = c.run(2);
        for (int64_t row = 0; row < n_query * s.n_head(); ++row) {
            const bool is_it = row == query * s.n_head() + head;
            const size_t bytes = s.size.v * sizeof(float);
            is_right = is_right && (is_it ? is_broken(after, row, s.size.v)
                                          : !memcmp(&after[row * s.size.v], &before[row * s.size.v], bytes));
        }
        part = kept;
        const uint16_t not_a_number = 0x7e00;  // as the scale of the first block of the last token's first key
        memcpy((char *)c.k->data + (s.n_token - 1) * c.k->nb[1], &not_a_number, sizeof(not_a_number));
        after = c.run(2);
        for (int64_t row = 0; row < n_query * s.n_head(); ++row) {
            const bool sees = row / s.n_head() == n_query - 1 && row % s.n_head() < s.group;
            is_right = is_right && is_broken(after, row, s.size.v) == sees;
        }
    }
    printf("%s: what is no number shows\n", is_right ? "ok" : "FAIL");
    return is_right;
}

// A model whose queries are all no numbers, and one whose last key is none, alone in its tile: nothing but that comes
// out, also where threads share out the tokens of a head.
bool broken_models_show(std::mt19937 & random) {
    bool is_right = true;
    for (int64_t group : { 1, 3 }) {
        for (int64_t n_head_kv : { 1, 3 }) {
            for (bool is_query : { true, false }) {
                attention_case c(plain_setting(group, n_head_kv, 1, 289), random);
                for (int64_t head = 0; head < (is_query ? c.s.n_head() : n_head_kv); ++head) {
                    const float query = NAN;
                    const uint16_t scale = 0x7e00;
                    char * key = (char *)c.k->data + (c.s.n_token - 1) * c.k->nb[1] + head * c.k->nb[2];
                    is_query ? memcpy((char *)c.q->data + head * c.q->nb[2], &query, sizeof(query))
                             : memcpy(key, &scale, sizeof(scale));
                }
                for (int n_threads : { 1, 2, 4 }) {
                    is_right = is_right && is_broken(c.run(n_threads), 0, c.s.n_head() * c.s.size.v);
                }
            }
        }
    }
    printf("%s: broken models show\n", is_right ? "ok" : "FAIL");
    return is_right;
}

size_t buffer_size(const setting & s, int n_threads, bool is_marked, bool has_heads = true) {
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init({ 1 << 20, nullptr, true }), ggml_free);
    ggml_tensor * q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, s.size.k, s.n_query, s.n_head());
    ggml_tensor * k = ggml_new_tensor_3d(ctx.get(), s.type_k, s.size.k, s.n_token, s.n_head_kv);
    ggml_tensor * v = ggml_new_tensor_3d(ctx.get(), s.type_v, s.size.v, s.n_token, s.n_head_kv);
    ggml_tensor * out = ggml_flash_attn_ext(ctx.get(), q, k, v, nullptr, s.scale, 0, 0);
    if (is_marked) {
        kvtuner_mark(out);
    }
    if (!has_heads) {  // a part of a model without any, as another machine may send it
        q->ne[2] = k->ne[2] = v->ne[2] = out->ne[1] = 0;
    }
    ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 16, false);
    ggml_build_forward_expand(graph, out);
    return CPU_FUNCTION(ggml_graph_plan)(graph, n_threads, nullptr).work_size;
}

// The weights of the KV heads that do not go round between the threads, a float each, and their tiles' references.
bool buffer_is_small() {
    const int64_t n_row = 16, n_token = 131072;
    const setting s = plain_setting(1, 8, n_row, n_token);
    bool is_right = true;
    for (int n_threads : { 1, 2, 3, 4, 8, 16 }) {
        const int64_t n_split = s.n_head_kv >= 4 * n_threads ? 0 : s.n_head_kv % n_threads;
        const size_t most = n_split * n_row * (n_token + n_token / 16) * sizeof(float);
        const size_t base = buffer_size(s, n_threads, false), ours = buffer_size(s, n_threads, true);
        is_right = is_right && ours <= std::max(base, base / 2 + most + (1 << 16));
        printf("  %d threads: %zu bytes, unmarked %zu\n", n_threads, ours, base);
    }
    is_right = is_right && buffer_size(s, 3, true, false) <= buffer_size(s, 3, false);
    printf("%s: the common buffer\n", is_right ? "ok" : "FAIL");
    return is_right;
}

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
    const bool is_right = broken_numbers_show(random) & broken_models_show(random) & buffer_is_small();
    printf("%d cases, worst normalized error %.2e, %d failures\n", all.n_cases, all.worst, all.n_failed);
    return all.n_failed != 0 || !is_right;
}
