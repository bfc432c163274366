// One attention node over marked caches, with random contents.
#pragma once

#include "cpu_backend.h"
#include "kvtuner-mark.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

constexpr float SEEN = 0, UNSEEN = -INFINITY;

struct head_sizes {
    int64_t k, v;
};

inline bool fits(ggml_type type, int64_t size) {
    return size % ggml_blck_size(type) == 0;
}

template <typename T, size_t N>
T pick(const T (&of)[N], std::mt19937 & random) {
    return of[random() % N];
}

// HOLES: some queries see nothing. Not among those that all tests have: BIASES, where scores get less, or more from
// token to token, and EVERYTHING, which all queries see.
enum mask_kind { NO_MASK, CAUSAL, WINDOW, HOLES, N_MASKS, BIASES, EVERYTHING };

struct setting {
    ggml_type type_k, type_v;
    head_sizes size;
    int64_t group, n_head_kv, n_stream, n_query, n_token;
    mask_kind mask;
    float scale, max_bias, softcap;
    bool has_sinks;
    int64_t n_center;  // of blocks of positions, 0 for none
    int64_t n_slot;    // of tokens with exact rows, 0 for none
    ggml_type type_exact;
    bool all_see;         // some token, also with HOLES
    bool has_own_slots;   // each stream sees slots of its own alone, which the node says
    bool has_hint;        // of how many tokens a query sees at most
    bool are_slots_seen;  // by all queries, also those without rows

    int64_t n_head() const {
        return group * n_head_kv;
    }

    std::string text() const {
        char line[300];
        snprintf(line, sizeof(line),
                 "K %s V %s heads %lld/%lld group %lld KV heads %lld streams %lld queries %lld tokens %lld mask %d "
                 "ALiBi %g cap %g sinks %d centers %lld exact %lld %s own %d hint %d",
                 ggml_type_name(type_k), ggml_type_name(type_v), (long long)size.k, (long long)size.v, (long long)group,
                 (long long)n_head_kv, (long long)n_stream, (long long)n_query, (long long)n_token, mask, max_bias,
                 softcap, has_sinks, (long long)n_center, (long long)n_slot, ggml_type_name(type_exact), has_own_slots,
                 has_hint);
        return line;
    }
};

// the tensors of a case, in a context of their own
struct attention_case {
    const setting s;
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx;
    ggml_tensor *q, *k, *v, *mask = nullptr, *sinks = nullptr, *out;
    ggml_tensor * centers = nullptr;                           // of the keys
    ggml_tensor *exact_k, *exact_v, *exact_mask = nullptr;     // rows of all KV heads, and who sees each slot
    std::vector<int32_t> slot_rows, slot_blocks, cell_blocks;  // as the node has them, one after another

    attention_case(const setting & s, std::mt19937 & random) : s(s), ctx(make_context(), ggml_free) {
        q = make(GGML_TYPE_F32, s.size.k, s.n_query, s.n_head(), random, 2);
        k = make_cache(s.type_k, s.size.k, random);
        v = make_cache(s.type_v, s.size.v, random);
        if (s.mask != NO_MASK) {
            mask = make_mask(s.n_token, s.mask, random);
        }
        out = ggml_flash_attn_ext(ctx.get(), q, k, v, mask, s.scale, s.max_bias, s.softcap);
        kvtuner_mark(out);
        if (s.has_sinks) {
            sinks = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, s.n_head());
            fill(sinks, random, 3);
            ggml_flash_attn_ext_add_sinks(out, sinks);
        }
        if (s.n_center > 0) {
            make_centers(random);
        }
        if (s.n_slot > 0) {
            make_exact(random);
        }
        add_integers();
        if (s.has_hint) {
            ggml_flash_attn_ext_set_n_kv_max(out, (int32_t)(s.n_token + s.n_slot));
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
        return ggml_init({ (size_t)256 << 20, nullptr, false });
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

    // all heads of a token side by side
    ggml_tensor * make_cache(ggml_type type, int64_t size, std::mt19937 & random) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), type, size * s.n_head_kv, s.n_token, s.n_stream);
        fill(t, random, 1);
        return ggml_view_4d(ctx.get(), t, size, s.n_token, s.n_head_kv, s.n_stream, t->nb[1], ggml_row_size(type, size),
                            t->nb[2], 0);
    }

    // cells in the order of their positions, and in any order
    void make_centers(std::mt19937 & random) {
        centers = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, s.size.k * s.n_head_kv, s.n_center);
        fill(centers, random, 2);
        out->src[KVTUNER_CENTERS_AT] = centers;
        for (int64_t stream = 0; stream < s.n_stream; ++stream) {
            add_blocks(cell_blocks, s.n_token, random);
        }
        add_blocks(slot_blocks, s.n_slot, random);
    }

    void add_blocks(std::vector<int32_t> & blocks, int64_t n, std::mt19937 & random) const {
        const bool is_ordered = random() % 2;
        const int64_t first = random() % 64;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t block = is_ordered ? (first + i) / 64 : random();
            blocks.push_back((int32_t)(block % s.n_center));
        }
    }

    // slots in any order of rows, the last of them without any
    void make_exact(std::mt19937 & random) {
        const int64_t n_row = s.n_slot + 3;
        exact_k = make_rows(s.size.k, n_row, random);
        exact_v = make_rows(s.size.v, n_row, random);
        exact_mask = make_mask(s.n_slot, s.are_slots_seen ? EVERYTHING : HOLES, random);
        if (s.has_own_slots) {
            hide_slots_of_others();
        }
        out->src[KVTUNER_EXACT_AT] = exact_k;
        out->src[KVTUNER_EXACT_AT + 1] = exact_v;
        out->src[KVTUNER_EXACT_AT + 2] = exact_mask;
        slot_rows.resize(n_row);
        std::iota(slot_rows.begin(), slot_rows.end(), 0);
        std::shuffle(slot_rows.begin(), slot_rows.end(), random);
        slot_rows.resize(s.n_slot);
        const int64_t n_without = s.are_slots_seen ? s.n_slot / 2 : random() % 3 % s.n_slot;
        std::fill(slot_rows.end() - n_without, slot_rows.end(), -1);
    }

    int64_t slots_of_stream() const {
        return (s.n_slot + s.n_stream - 1) / s.n_stream;
    }

    void hide_slots_of_others() {
        ggml_fp16_t * seen = (ggml_fp16_t *)exact_mask->data;
        for (int64_t i = 0; i < ggml_nelements(exact_mask); ++i) {
            const int64_t stream = i / s.n_slot / s.n_query;
            seen[i] = i % s.n_slot / slots_of_stream() == stream ? seen[i] : ggml_fp32_to_fp16(UNSEEN);
        }
    }

    // [head size, rows, KV heads]: those of a row side by side
    ggml_tensor * make_rows(int64_t size, int64_t n_row, std::mt19937 & random) {
        ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), s.type_exact, size * s.n_head_kv, n_row);
        fill(t, random, 1);
        return ggml_view_3d(ctx.get(), t, size, n_row, s.n_head_kv, t->nb[1], ggml_row_size(t->type, size), 0);
    }

    void add_integers() {
        std::vector<int32_t> all = slot_rows;
        all.insert(all.end(), slot_blocks.begin(), slot_blocks.end());
        all.insert(all.end(), cell_blocks.begin(), cell_blocks.end());
        for (int64_t stream = 0; s.n_slot > 0 && s.has_own_slots && stream < s.n_stream; ++stream) {
            all.push_back((int32_t)(stream * slots_of_stream()));
        }
        if (!all.empty()) {
            ggml_tensor * integers = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, (int64_t)all.size());
            memcpy(integers->data, all.data(), ggml_nbytes(integers));
            out->src[KVTUNER_INTEGERS_AT] = integers;
        }
    }

    bool sees(mask_kind kind, int64_t query, int64_t token, std::mt19937 & random) const {
        const int64_t position = s.n_token - s.n_query + query;
        switch (kind) {
            case CAUSAL:
                return token <= position;
            case WINDOW:
                return token <= position && token > position - 20;
            case EVERYTHING:
                return true;
            default:
                return (s.all_see || query % 5 != 3) && random() % 3 != 0;
        }
    }

    float bias_of(mask_kind kind, int64_t query, int64_t token, std::mt19937 & random) const {
        if (kind == BIASES) {
            return pick({ 0.0f, 3.0f, -5.0f, -60000.0f }, random) + 0.125f * (token % 512);
        }
        return s.max_bias > 0 ? -0.01f * std::abs((float)(token - query)) : SEEN;
    }

    ggml_tensor * make_mask(int64_t n_token, mask_kind kind, std::mt19937 & random) {
        constexpr int64_t READ_BEHIND = 64;  // rows that upstream's CUDA kernels read behind a mask
        const int64_t n_row = s.n_query * s.n_stream;
        ggml_tensor * all = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_token, n_row + READ_BEHIND);
        memset(all->data, 0, ggml_nbytes(all));
        ggml_tensor * made = ggml_view_4d(ctx.get(), all, n_token, s.n_query, 1, s.n_stream, all->nb[1],
                                          all->nb[1] * s.n_query, all->nb[1] * s.n_query, 0);
        ggml_fp16_t * values = (ggml_fp16_t *)made->data;
        for (int64_t row = 0; row < s.n_query * s.n_stream; ++row) {
            for (int64_t token = 0; token < n_token; ++token) {
                const int64_t query = row % s.n_query;
                *values++ = ggml_fp32_to_fp16(sees(kind, query, token, random) ? bias_of(kind, query, token, random)
                                                                               : UNSEEN);
            }
        }
        return made;
    }
};

// broken numbers and the common buffer, which go beside the cases
bool edges_are_right(std::mt19937 & random);
