// Which products of a graph find their rows quantized: those right behind another of the same rows, and those right
// behind attention or a norm. Which are of some rows.

#include "kvtuner-last-rows.h"
#include "kvtuner-multiplied.h"
#include "kvtuner-thin.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int64_t N_VALUES = 64, N_HEADS = 8, N_CELLS = 32;

int failures = 0;

void expect(bool is_right, const char * what) {
    if (!is_right) {
        printf("%s\n", what);
        ++failures;
    }
}

struct graph_of {
    ggml_context_ptr ctx{ ggml_init({ 4 * 1024 * 1024, nullptr, /*no_alloc =*/false }) };
    ggml_cgraph * graph = ggml_new_graph(ctx.get());

    ggml_tensor * matrix(ggml_type type, int64_t n, int64_t n_rows) {
        return ggml_new_tensor_2d(ctx.get(), type, n, n_rows);
    }

    ggml_tensor * product(ggml_tensor * rows, ggml_type type = GGML_TYPE_Q4_0) {
        return ggml_mul_mat(ctx.get(), matrix(type, rows->ne[0], N_VALUES * N_HEADS), rows);
    }

    // which are there before they are computed, of products of a graph that is computed in order
    std::vector<bool> found() {
        std::vector<bool> found;
        kvtuner::last_rows last;
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            const ggml_tensor * node = ggml_graph_node(graph, i);
            if (ggml_op_is_empty(node->op)) {
                continue;
            }
            last.go_on_to(node);
            if (last.is_product_of(node->src[1])) {
                found.push_back(last.take(node->src[1]));
            }
        }
        return found;
    }

    ggml_tensor * attention() {
        ggml_context * c = ctx.get();
        ggml_tensor * q = ggml_new_tensor_3d(c, GGML_TYPE_F32, N_VALUES, 1, N_HEADS);
        ggml_tensor * k = ggml_new_tensor_3d(c, GGML_TYPE_F16, N_VALUES, N_CELLS, N_HEADS);
        ggml_tensor * mask = matrix(GGML_TYPE_F16, N_CELLS, 1);
        return ggml_flash_attn_ext(c, q, k, k, mask, 1, 0, 0);
    }

    ggml_tensor * row_of(ggml_tensor * heads) {
        return ggml_reshape_2d(ctx.get(), heads, N_VALUES * N_HEADS, 1);
    }

    int place_of(const ggml_tensor * node) const {
        int i = 0;
        while (ggml_graph_node(graph, i) != node) {
            ++i;
        }
        return i;
    }

    // the rows that a product reads right behind `node`
    const ggml_tensor * multiplied_next(const ggml_tensor * node) const {
        return kvtuner::multiplied_next(*graph, place_of(node));
    }
};

void test_products_of_the_same_rows() {
    graph_of g;
    ggml_tensor * x = ggml_rms_norm(g.ctx.get(), g.matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 1), 1e-5f);
    for (int i = 0; i < 3; ++i) {
        ggml_build_forward_expand(g.graph, ggml_reshape_2d(g.ctx.get(), g.product(x), N_VALUES, N_HEADS));
    }
    ggml_build_forward_expand(g.graph, g.product(ggml_scale(g.ctx.get(), x, 2)));
    ggml_build_forward_expand(g.graph, g.product(x));
    expect(g.found() == std::vector<bool>({ false, true, true, false, false }), "products of the same rows");
}

void test_rows_that_change() {
    graph_of g;
    ggml_tensor * x = ggml_rms_norm(g.ctx.get(), g.matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 1), 1e-5f);
    ggml_build_forward_expand(g.graph, g.product(x));
    ggml_tensor * changed = ggml_scale_inplace(g.ctx.get(), x, 2);
    ggml_build_forward_expand(g.graph, g.product(changed));
    expect(g.found() == std::vector<bool>({ false, false }), "rows that change where they are");
    graph_of h;
    ggml_tensor * y = ggml_rms_norm(h.ctx.get(), h.matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 1), 1e-5f);
    ggml_build_forward_expand(h.graph, h.product(y));
    ggml_build_forward_expand(h.graph, ggml_scale_inplace(h.ctx.get(), y, 2));
    ggml_build_forward_expand(h.graph, h.product(y));
    expect(h.found() == std::vector<bool>({ false, false }), "rows that another node changes between");
}

// which of its rows a product multiplies on its way, it says by a tensor that the graph does not have
void test_other_rows() {
    graph_of g;
    ggml_tensor * x = g.matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 4);
    ggml_tensor * y = g.matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 4);
    ggml_tensor * experts = ggml_new_tensor_3d(g.ctx.get(), GGML_TYPE_Q4_0, N_VALUES * N_HEADS, N_VALUES, 2);
    ggml_tensor * rows = ggml_reshape_3d(g.ctx.get(), x, x->ne[0], 1, x->ne[1]);
    const ggml_tensor * chosen = ggml_mul_mat_id(g.ctx.get(), experts, rows, g.matrix(GGML_TYPE_I32, 1, 4));
    kvtuner::last_rows last;
    expect(!last.is_product_of(x), "no node");
    last.go_on_to(chosen);
    expect(!last.is_product_of(rows) && !last.is_product_of(y), "rows that experts multiply");
    last.go_on_to(g.product(x));
    expect(last.is_product_of(x) && !last.is_product_of(y), "rows of another product");
}

void test_output_of_attention() {
    for (ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_Q6_K, GGML_TYPE_F16 }) {
        graph_of g;
        ggml_tensor * out = g.attention();
        ggml_tensor * row = g.row_of(out);
        ggml_build_forward_expand(g.graph, g.product(row, type));
        expect(g.multiplied_next(out) == (type == GGML_TYPE_F16 ? nullptr : row), "a product behind attention");
    }
    graph_of g;
    ggml_tensor * out = g.attention();
    ggml_build_forward_expand(g.graph, g.product(ggml_scale(g.ctx.get(), g.row_of(out), 2)));
    expect(g.multiplied_next(out) == nullptr, "a step between");
    graph_of first;
    ggml_tensor * heads = first.attention();
    ggml_tensor * part = ggml_view_2d(first.ctx.get(), heads, N_VALUES * N_HEADS / 2, 1, heads->nb[2], 0);
    ggml_build_forward_expand(first.graph, first.product(part));
    expect(first.multiplied_next(heads) == nullptr, "a part of the output");
    graph_of h;
    ggml_tensor * last = h.attention();
    ggml_build_forward_expand(h.graph, last);
    expect(h.multiplied_next(last) == nullptr, "nothing behind attention");
}

void test_rotated_output() {
    graph_of g;
    ggml_tensor * out = g.attention();
    ggml_tensor * turned = ggml_mul_mat(g.ctx.get(), g.matrix(GGML_TYPE_F32, N_VALUES, N_VALUES), out);
    ggml_mul_mat_set_hint(turned, GGML_HINT_SRC0_IS_HADAMARD);
    ggml_tensor * row = g.row_of(turned);
    ggml_build_forward_expand(g.graph, g.product(row));
    expect(g.multiplied_next(turned) == row, "a product behind a rotation");
    expect(g.multiplied_next(out) == nullptr, "a rotation, whose matrix is not quantized");
}

// a norm, its weights, and a product of both
struct norm_graph : graph_of {
    ggml_context_ptr weights_ctx{ ggml_init({ 1024, nullptr, /*no_alloc =*/true }) };
    ggml_backend_ptr backend{ ggml_backend_cpu_init() };
    ggml_tensor * weights;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * norm = ggml_rms_norm(ctx.get(), matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 2), 1e-5f);

    explicit norm_graph(int64_t n_weights = N_VALUES * N_HEADS)
        : weights(ggml_new_tensor_1d(weights_ctx.get(), GGML_TYPE_F32, n_weights)),
          buffer(ggml_backend_alloc_ctx_tensors(weights_ctx.get(), backend.get())) {
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }

    ggml_tensor * multiplied() {
        return ggml_mul(ctx.get(), norm, weights);
    }

    // in the graph that ends with `last`, from the node of the norm on
    std::optional<kvtuner::multiplied_norm> find(ggml_tensor * last) {
        ggml_build_forward_expand(graph, last);
        return kvtuner::find_norm(*graph, place_of(norm));
    }
};

void test_norms() {
    norm_graph g;
    ggml_tensor * out = g.multiplied();
    const auto found = g.find(g.product(out));
    expect(found && found->norm == g.norm && found->weights == g.weights && found->out == out && found->rows == out,
           "a product behind a norm");
    norm_graph turned;
    out = ggml_mul(turned.ctx.get(), turned.matrix(GGML_TYPE_F32, N_VALUES * N_HEADS, 2), turned.norm);
    expect(!turned.find(turned.product(out)), "no weights, but a matrix that another node may make");
    norm_graph changing;
    ggml_backend_buffer_set_usage(changing.buffer.get(), GGML_BACKEND_BUFFER_USAGE_COMPUTE);
    expect(!changing.find(changing.product(changing.multiplied())), "weights that may change");
    norm_graph few(N_VALUES);
    expect(!few.find(few.product(few.multiplied())), "weights that repeat");
    norm_graph halves;
    expect(!halves.find(halves.product(halves.multiplied(), GGML_TYPE_F16)), "a product of halves");
    norm_graph between;
    out = ggml_scale(between.ctx.get(), between.multiplied(), 2);
    expect(!between.find(between.product(out)), "a step behind the weights");
    norm_graph twice;
    out = ggml_add(twice.ctx.get(), twice.product(twice.multiplied()), twice.norm);
    expect(!twice.find(out), "a norm that is read without its weights, too");
    norm_graph shaped;
    out = ggml_reshape_2d(shaped.ctx.get(), shaped.multiplied(), N_VALUES, 2 * N_HEADS);
    expect(!shaped.find(shaped.product(out)), "rows of another length");
}

// a product of weights with some rows
struct thin_graph : graph_of {
    ggml_context_ptr weights_ctx{ ggml_init({ 1024, nullptr, /*no_alloc =*/true }) };
    ggml_backend_ptr backend{ ggml_backend_cpu_init() };
    ggml_tensor * weights;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * rows;

    explicit thin_graph(ggml_type type = GGML_TYPE_Q4_0, int64_t n_values = 512, int64_t n_rows = 32,
                        int64_t n_matrices = 1)
        : weights(ggml_new_tensor_3d(weights_ctx.get(), type, n_values, 32, n_matrices)),
          buffer(ggml_backend_alloc_ctx_tensors(weights_ctx.get(), backend.get())),
          rows(ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_values, n_rows / n_matrices, n_matrices)) {
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }

    bool is_thin() {
        return kvtuner::is_thin_product(ggml_mul_mat(ctx.get(), weights, rows));
    }
};

void test_thin_products() {
    for (const ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K }) {
        expect(thin_graph(type, 2048).is_thin(), ggml_type_name(type));
    }
    expect(thin_graph(GGML_TYPE_Q4_0, 512, 8).is_thin(), "the fewest rows");
    expect(thin_graph(GGML_TYPE_Q4_0, 512, 64).is_thin(), "the most rows");
    expect(!thin_graph(GGML_TYPE_Q4_0, 512, 7).is_thin(), "vectors");
    expect(!thin_graph(GGML_TYPE_Q4_0, 512, 65).is_thin(), "a matrix");
    expect(!thin_graph(GGML_TYPE_Q4_0, 512 + 32).is_thin(), "rows that are no whole steps");
    expect(!thin_graph(GGML_TYPE_Q6_K).is_thin(), "rows that begin between multiples of 16 bytes");
    expect(!thin_graph(GGML_TYPE_F16).is_thin(), "halves");
    expect(!thin_graph(GGML_TYPE_Q4_0, 512, 32, 2).is_thin(), "two matrices");
    thin_graph changing;
    ggml_backend_buffer_set_usage(changing.buffer.get(), GGML_BACKEND_BUFFER_USAGE_COMPUTE);
    expect(!changing.is_thin(), "weights that may change");
    thin_graph apart;
    apart.rows = ggml_view_2d(apart.ctx.get(), apart.rows, 512, 16, 2 * apart.rows->nb[1], 0);
    expect(!apart.is_thin(), "rows with others between");
    thin_graph halves;
    halves.rows = halves.matrix(GGML_TYPE_F16, 512, 32);
    expect(!halves.is_thin(), "rows of halves");
    expect(!kvtuner::is_thin_product(ggml_scale(halves.ctx.get(), halves.rows, 2)), "no product");
}

}  // namespace

int main() {
    test_products_of_the_same_rows();
    test_rows_that_change();
    test_other_rows();
    test_output_of_attention();
    test_rotated_output();
    test_norms();
    test_thin_products();
    printf("%d failures\n", failures);
    return failures > 0;
}
