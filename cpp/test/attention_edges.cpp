#include "attention_case.h"

#include <algorithm>

namespace {

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

bool edges_are_right(std::mt19937 & random) {
    return broken_numbers_show(random) & broken_models_show(random) & buffer_is_small();
}
