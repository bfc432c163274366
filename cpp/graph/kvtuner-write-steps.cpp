#include "kvtuner-write-steps.h"

#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>

namespace kvtuner {

namespace {

bool is_hadamard(const ggml_tensor * node) {
    return node->op == GGML_OP_MUL_MAT && ggml_get_op_params_i32(node, 1) == GGML_HINT_SRC0_IS_HADAMARD;
}

bool is_plain_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->ne[3] == 1 && t->nb[0] == sizeof(float) && t->nb[1] == t->ne[0] * t->nb[0];
}

// an operation on the row of every token and the same vector
bool takes_vector(const ggml_tensor * node, ggml_op op, int64_t row_length) {
    const ggml_tensor * rows = node->src[0];
    const ggml_tensor * vector = node->src[1];
    return node->op == op && is_plain_rows(rows) && rows->ne[0] * rows->ne[1] == row_length &&
           storage_of(vector)->op == GGML_OP_NONE && vector->type == GGML_TYPE_F32 && ggml_is_contiguous(vector) &&
           vector->ne[0] == rows->ne[0] && vector->ne[1] == rows->ne[1] && ggml_nelements(vector) == row_length;
}

// GET_ROWS out of a table of centers, of each token one
bool is_of_table(const ggml_tensor * get_rows, int64_t row_length) {
    const ggml_tensor *table = get_rows->src[0], *blocks = get_rows->src[1];
    return get_rows->op == GGML_OP_GET_ROWS && table->op == GGML_OP_NONE && table->type == GGML_TYPE_F16 &&
           table->ne[0] == row_length && ggml_is_contiguous(table) && storage_of(blocks)->op == GGML_OP_NONE &&
           blocks->type == GGML_TYPE_I32 && ggml_is_vector(blocks);
}

// a norm and its weights are one step of the CPU, which passes over the node that multiplies
bool is_of_norm(const ggml_tensor * mul) {
    return mul->src[0]->op == GGML_OP_RMS_NORM;
}

}  // namespace

const ggml_tensor * chain::producer(const ggml_tensor * values) {
    while (is_elidable(values)) {
        passed.push_back(values);
        if (values->op != GGML_OP_RESHAPE && values->op != GGML_OP_VIEW) {
            return values;
        }
        const ggml_tensor * source = values->src[0];
        if (!ggml_is_contiguous(values) || !ggml_is_contiguous(source) || values->view_offs != source->view_offs ||
            ggml_nelements(values) != ggml_nelements(source)) {
            return nullptr;
        }
        values = source;
    }
    return nullptr;
}

bool chain::is_elidable(const ggml_tensor * node) const {
    const auto it = nodes.find(node);
    return it != nodes.end() && ggml_node_get_use_count(&graph, it->second) <= most_readers &&
           (node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0 && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
}

const ggml_tensor * storage_of(const ggml_tensor * tensor) {
    return tensor->view_src ? tensor->view_src : tensor;
}

bool takes_rotation(const ggml_tensor * mul_mat, int64_t row_length) {
    const ggml_tensor * values = mul_mat->src[1];
    return is_hadamard(mul_mat) && values->type == GGML_TYPE_F32 && ggml_is_contiguous(values) &&
           ggml_is_contiguous(mul_mat) && row_length % mul_mat->ne[0] == 0;
}

bool is_first_step(const ggml_tensor * node) {
    return node->op == GGML_OP_SUB || is_hadamard(node);
}

bool is_step(const ggml_tensor * node) {
    return node->op == GGML_OP_RESHAPE || node->op == GGML_OP_VIEW || node->op == GGML_OP_GET_ROWS ||
           node->op == GGML_OP_MUL || is_first_step(node);
}

bool is_cache_write(const ggml_tensor * node) {
    return node->op == GGML_OP_SET_ROWS && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 &&
           ggml_nelements(node->src[0]) > 0 && node->src[0]->type == GGML_TYPE_F32 &&
           node->src[1]->type == GGML_TYPE_I64 && node->src[1]->op == GGML_OP_NONE && node->ne[2] == 1 &&
           node->ne[3] == 1 && node->src[0]->ne[2] == 1 && node->src[0]->ne[3] == 1;
}

bool is_read_between(const ggml_cgraph & graph, int first, int last) {
    const ggml_tensor * cache = storage_of(graph.nodes[last]);
    for (int i = first + 1; i < last; ++i) {
        for (const ggml_tensor * source : graph.nodes[i]->src) {
            if (source && storage_of(source) == cache && graph.nodes[i]->op != GGML_OP_RESHAPE &&
                graph.nodes[i]->op != GGML_OP_VIEW) {
                return true;
            }
        }
    }
    return false;
}

bool find_center(const ggml_tensor * sub, int64_t row_length, chain & steps, kvtuner_write & write) {
    if (takes_vector(sub, GGML_OP_SUB, row_length)) {
        write.center = sub->src[1];
        return true;
    }
    if (sub->op != GGML_OP_SUB || !is_plain_rows(sub->src[0]) || !ggml_are_same_shape(sub->src[0], sub->src[1])) {
        return false;
    }
    const size_t n_passed = steps.passed.size();
    const ggml_tensor * rows = steps.producer(sub->src[1]);
    if (!rows || !is_of_table(rows, row_length)) {
        steps.passed.resize(n_passed);
        return false;
    }
    write.center = rows->src[0];
    write.blocks = rows->src[1];
    std::rotate(steps.passed.begin(), steps.passed.begin() + n_passed, steps.passed.end());  // SUB starts the write
    return true;
}

const ggml_tensor * find_scale(int64_t row_length, chain & steps, kvtuner_write & write) {
    const size_t n_passed = steps.passed.size();
    const ggml_tensor * mul = steps.producer(write.rows);
    if (!mul || !takes_vector(mul, GGML_OP_MUL, row_length) || is_of_norm(mul)) {
        steps.passed.resize(n_passed);
        return nullptr;
    }
    write.scale = mul->src[1];
    write.rows = mul->src[0];
    write.rows_stride = (int64_t)mul->src[0]->nb[2];
    return mul;
}

}  // namespace kvtuner
