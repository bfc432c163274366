#include "write_graphs.h"

#include "kvtuner-mark.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstdio>

int failures = 0;

void expect(bool is_right, const std::string & what) {
    if (!is_right) {
        printf("%s\n", what.c_str());
        ++failures;
    }
}

ggml_tensor * rotate(ggml_context * ctx, ggml_tensor * x, ggml_tensor * matrix) {
    const int64_t n = matrix->ne[0];
    ggml_tensor * flat = ggml_reshape_2d(ctx, x, n, ggml_nelements(x) / n);
    ggml_tensor * product = ggml_mul_mat(ctx, matrix, flat);
    ggml_mul_mat_set_hint(product, GGML_HINT_SRC0_IS_HADAMARD);
    return ggml_reshape_4d(ctx, product, x->ne[0], x->ne[1], x->ne[2], x->ne[3]);
}

static void make_centers(ggml_context * ctx, const shape & s, writing & w) {
    if (s.has_table) {
        w.center = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, s.head_size * s.n_head, N_BLOCKS);
        w.blocks = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, s.n_tokens);
    } else {
        w.center = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.head_size, s.n_head);
    }
}

static ggml_tensor * less_center(ggml_context * ctx, const writing & w, ggml_tensor * x) {
    ggml_tensor * rows =
            w.blocks ? ggml_reshape_3d(ctx, ggml_get_rows(ctx, w.center, w.blocks), x->ne[0], x->ne[1], x->ne[2])
                     : w.center;
    return ggml_sub(ctx, x, rows);
}

// in place, as the allocator has it in graphs of models
static ggml_tensor * turn(ggml_context * ctx, const shape & s, const writing & w, ggml_tensor * x) {
    const int n = (int)(s.rope == shape::ROPE_OF_HALF ? s.head_size / 2 : s.head_size);
    const int mode = s.rope == shape::ROPE ? GGML_ROPE_TYPE_NORMAL : GGML_ROPE_TYPE_NEOX;
    const float extension = s.rope == shape::ROPE_APART ? 1 : 0;
    return ggml_rope_ext_inplace(ctx, x, w.positions, w.factors, n, mode, 4096, 10000, extension ? 0.25f : 1, extension,
                                 1, 32, 1);
}

static ggml_tensor * add_rope(ggml_context * ctx, const shape & s, writing & w, ggml_tensor * x) {
    w.positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, s.n_tokens);
    w.factors = s.rope == shape::ROPE_OF_HALF ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, s.head_size / 4) : nullptr;
    w.queries = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, s.head_size, 2 * s.n_head, s.n_tokens);
    w.turned_queries = turn(ctx, s, w, w.queries);
    return w.turned = turn(ctx, s, w, x);
}

writing make_writing(ggml_context * ctx, const shape & s, ggml_type index_type) {
    writing w = {};
    const int64_t width = s.head_size * s.n_head;
    w.base = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.wide ? 3 * width : width, s.n_tokens);
    w.cache = ggml_new_tensor_2d(ctx, s.type, width, N_CELLS);
    w.indices = ggml_new_tensor_1d(ctx, index_type, s.n_tokens);
    const size_t head_bytes = s.head_size * sizeof(float);
    ggml_tensor * x = ggml_view_3d(ctx, w.base, s.head_size, s.n_head, s.n_tokens, head_bytes, w.base->nb[1],
                                   s.wide ? width * sizeof(float) : 0);
    if (s.rope != shape::NO_ROPE) {
        x = add_rope(ctx, s, w, x);
    }
    if (s.has_scale) {
        w.scale = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.head_size, s.n_head);
        x = w.scaled = ggml_mul(ctx, x, w.scale);
    }
    if (s.wide && !s.has_scale && (s.rotation || !s.center)) {
        x = ggml_cont(ctx, x);
    }
    if (s.rotation) {
        w.matrix = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.rotation, s.rotation);
        x = w.rotated = rotate(ctx, x, w.matrix);
    }
    ggml_tensor * same = x;  // what is stored beside the cache has steps of its own after the rotation
    if (s.center) {
        make_centers(ctx, s, w);
        x = w.centered = less_center(ctx, w, x);
    }
    w.stored = ggml_set_rows(ctx, w.cache, ggml_view_2d(ctx, x, width, s.n_tokens, x->nb[2], 0), w.indices);
    if (s.has_exact) {
        same = s.center ? w.exact_centered = less_center(ctx, w, same) : same;
        w.exact = ggml_new_tensor_2d(ctx, s.exact_type, width, N_CELLS);
        w.stored_exact =
                ggml_set_rows(ctx, w.exact, ggml_view_2d(ctx, same, width, s.n_tokens, same->nb[2], 0), w.indices);
    }
    if (s.of_values) {
        kvtuner_mark_values(w.stored);
    }
    return w;
}

ggml_context_ptr new_context() {
    return ggml_context_ptr(
            ggml_init({ 8 * ggml_graph_overhead_custom(N_NODES, false) + N_NODES * ggml_tensor_overhead(), nullptr,
                        /*.no_alloc =*/true }));
}

ggml_cgraph * graph_of(ggml_context * ctx, const std::vector<ggml_tensor *> & last) {
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, N_NODES, false);
    for (ggml_tensor * tensor : last) {
        ggml_build_forward_expand(graph, tensor);
    }
    return graph;
}

bool any(const kvtuner_write &) {
    return true;
}

static int position_of(const ggml_cgraph * graph, const ggml_tensor * node) {
    return (int)(std::find(graph->nodes, graph->nodes + graph->n_nodes, node) - graph->nodes);
}

std::string found(const ggml_cgraph * graph, bool (*can_do)(const kvtuner_write &), bool with_scale) {
    const kvtuner_writes writes(*graph, can_do, with_scale);
    std::string text;
    size_t n_covered = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        n_covered += writes.covers(i);
        if (const kvtuner_write * write = writes.starting_with(i)) {
            text += text.empty() ? "" : ", ";
            text += write->scale ? "scale " : "";
            text += write->center ? write->rotation ? "rotation center" : "center" : "rotation";
            text += write->stores.size() == 2 ? " x2" : "";
            for (const ggml_tensor * set_rows : write->stores) {
                expect(writes.covers(i) && writes.covers(position_of(graph, set_rows)),
                       "first and last step are covered");
            }
        }
    }
    expect((n_covered == 0) == text.empty(), "nothing is covered without a write");
    return text;
}
