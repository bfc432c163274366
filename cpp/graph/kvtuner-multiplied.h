// What a node makes, as the rows that a product of weights reads next.
#pragma once

#include "ggml-backend.h"
#include "ggml-impl.h"

#include <optional>

namespace kvtuner {

inline bool is_view(const ggml_tensor * node) {
    return node->op == GGML_OP_RESHAPE || node->op == GGML_OP_VIEW || node->op == GGML_OP_PERMUTE;
}

// the output of node i as the rows of a product that comes next, of quantized weights, or null
inline const ggml_tensor * multiplied_next(const ggml_cgraph & graph, int i) {
    const ggml_tensor * last = graph.nodes[i];
    for (int k = i + 1; k < graph.n_nodes; ++k) {
        const ggml_tensor * next = graph.nodes[k];
        if (is_view(next) && next->src[0] == last && ggml_is_contiguous(next) && next->data == last->data) {
            last = next;
        } else if (!ggml_op_is_empty(next->op)) {
            const bool is_product =
                    next->op == GGML_OP_MUL_MAT && next->src[1] == last && ggml_is_quantized(next->src[0]->type);
            return is_product && ggml_nelements(last) == ggml_nelements(graph.nodes[i]) ? last : nullptr;
        }
    }
    return nullptr;
}

// A root-mean-square norm of rows and its weights, a vector that nothing writes while graphs run.
struct multiplied_norm {
    const ggml_tensor *norm, *weights;
    const ggml_tensor * out;   // of both steps
    const ggml_tensor * rows;  // the output, as a product reads it next
};

inline bool is_constant(const ggml_tensor * weights) {
    return weights->op == GGML_OP_NONE && weights->buffer &&
           ggml_backend_buffer_get_usage(weights->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

// nodes i and i + 1, if these are such a norm
inline std::optional<multiplied_norm> find_norm(const ggml_cgraph & graph, int i) {
    if (!ggml_can_fuse(&graph, i, { GGML_OP_RMS_NORM, GGML_OP_MUL })) {
        return {};
    }
    const ggml_tensor *norm = graph.nodes[i], *out = graph.nodes[i + 1], *x = norm->src[0];
    const ggml_tensor * weights = out->src[0] == norm ? out->src[1] : out->src[0];
    const ggml_tensor * rows = multiplied_next(graph, i + 1);
    const bool are_rows = x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && ggml_is_matrix(x) &&
                          out->type == GGML_TYPE_F32 && ggml_is_contiguous(out);
    const bool is_vector = weights->type == GGML_TYPE_F32 && weights->ne[0] == x->ne[0] && ggml_nrows(weights) == 1 &&
                           ggml_is_contiguous(weights) && is_constant(weights);
    if (!are_rows || !is_vector || !rows || rows->ne[0] != x->ne[0]) {
        return {};
    }
    return multiplied_norm{ norm, weights, out, rows };
}

}  // namespace kvtuner
