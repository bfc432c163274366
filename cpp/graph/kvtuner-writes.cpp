#include "kvtuner-writes.h"

#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>
#include <unordered_map>

namespace {

using positions = std::unordered_map<const ggml_tensor *, int>;

const ggml_tensor * storage_of(const ggml_tensor * tensor) {
    return tensor->view_src ? tensor->view_src : tensor;
}

bool is_hadamard(const ggml_tensor * node) {
    return node->op == GGML_OP_MUL_MAT && ggml_get_op_params_i32(node, 1) == GGML_HINT_SRC0_IS_HADAMARD;
}

// steps back through what only gives another shape to the same values in the same order
class chain {
public:
    chain(const ggml_cgraph & graph, const positions & nodes) : graph(graph), nodes(nodes) {
    }

    // the step that made these values for no other reader, or null; what is walked past is kept in `passed`
    const ggml_tensor * producer(const ggml_tensor * values) {
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

    std::vector<const ggml_tensor *> passed;

private:
    bool is_elidable(const ggml_tensor * node) const {
        const auto it = nodes.find(node);
        return it != nodes.end() && ggml_node_get_use_count(&graph, it->second) == 1 &&
               (node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0 && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
    }

    const ggml_cgraph & graph;
    const positions & nodes;
};

bool is_plain_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->ne[3] == 1 && t->nb[0] == sizeof(float) && t->nb[1] == t->ne[0] * t->nb[0];
}

// SUB of the same vector from every token
bool takes_center(const ggml_tensor * sub, int64_t row_length) {
    const ggml_tensor * rows = sub->src[0];
    const ggml_tensor * center = sub->src[1];
    return sub->op == GGML_OP_SUB && is_plain_rows(rows) && rows->ne[0] * rows->ne[1] == row_length &&
           storage_of(center)->op == GGML_OP_NONE && center->type == GGML_TYPE_F32 && ggml_is_contiguous(center) &&
           center->ne[0] == rows->ne[0] && center->ne[1] == rows->ne[1] && ggml_nelements(center) == row_length;
}

// GET_ROWS out of a table of centers, of each token one
bool is_of_table(const ggml_tensor * get_rows, int64_t row_length) {
    const ggml_tensor *table = get_rows->src[0], *blocks = get_rows->src[1];
    return get_rows->op == GGML_OP_GET_ROWS && table->op == GGML_OP_NONE && table->type == GGML_TYPE_F16 &&
           table->ne[0] == row_length && ggml_is_contiguous(table) && blocks->op == GGML_OP_NONE &&
           blocks->type == GGML_TYPE_I32 && ggml_is_vector(blocks);
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
           is_first_step(node);
}

bool is_cache_write(const ggml_tensor * node) {
    return node->op == GGML_OP_SET_ROWS && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 &&
           ggml_nelements(node->src[0]) > 0 && node->src[0]->type == GGML_TYPE_F32 &&
           node->src[1]->type == GGML_TYPE_I64 && node->src[1]->op == GGML_OP_NONE && node->ne[2] == 1 &&
           node->ne[3] == 1 && node->src[0]->ne[2] == 1 && node->src[0]->ne[3] == 1;
}

// whether a node between the two reads the cache, which must then be as it was
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

// The center that SUB takes off, with what makes it. False where it is none.
bool find_center(const ggml_tensor * sub, int64_t row_length, chain & steps, kvtuner_write & write) {
    if (takes_center(sub, row_length)) {
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

bool find_write(const ggml_cgraph & graph, int last, const positions & nodes, chain & steps, kvtuner_write & write) {
    const ggml_tensor * set_rows = graph.nodes[last];
    const int64_t row_length = set_rows->src[0]->ne[0];
    write = { nullptr, 0, nullptr, nullptr, 0, set_rows };
    const ggml_tensor * first = nullptr;
    const ggml_tensor * step = steps.producer(set_rows->src[0]);
    if (step && find_center(step, row_length, steps, write)) {
        first = step;
        write.rows = step->src[0];
        write.rows_stride = step->src[0]->nb[2];
        const size_t n_passed = steps.passed.size();
        step = steps.producer(step->src[0]);
        if (!step || !takes_rotation(step, row_length)) {
            steps.passed.resize(n_passed);
            step = nullptr;
        }
    }
    if (step && takes_rotation(step, row_length)) {
        first = step;
        write.rotation = step->ne[0];
        write.rows = step->src[1];
        write.rows_stride = row_length * (int64_t)sizeof(float);
    }
    return first && !is_read_between(graph, nodes.at(first), last);
}

bool is_done(const ggml_tensor * node) {
    return !ggml_op_is_empty(node->op) && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
}

// whether a write can run while a node before it does
bool can_overlap(const kvtuner_write & write, const ggml_tensor * node) {
    const ggml_tensor * cache = storage_of(write.set_rows);
    const auto is_read = [cache](const ggml_tensor * source) { return source && storage_of(source) == cache; };
    return storage_of(node) != storage_of(write.rows) && storage_of(node) != cache &&
           std::none_of(std::begin(node->src), std::end(node->src), is_read);
}

}  // namespace

kvtuner_writes::kvtuner_writes(const ggml_cgraph & graph, bool (*can_do)(const kvtuner_write &)) {
    if (std::none_of(graph.nodes, graph.nodes + graph.n_nodes, is_first_step)) {
        return;  // as most graphs without a plan
    }
    positions steps_before;
    for (int i = 0; i < graph.n_nodes; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        if (is_step(node)) {
            steps_before[node] = i;
        }
        if (!is_cache_write(node)) {
            continue;
        }
        kvtuner_write write;
        chain steps(graph, steps_before);
        if (!find_write(graph, i, steps_before, steps, write) || !can_do(write)) {
            continue;
        }
        nodes.resize(graph.n_nodes);
        nodes[steps_before.at(steps.passed.back())].write = (int)writes.size();
        for (const ggml_tensor * step : steps.passed) {
            nodes[steps_before.at(step)].is_covered = true;
        }
        nodes[i].is_covered = true;
        writes.push_back(write);
    }
    if (!writes.empty()) {
        find_where_threads_go_on(graph);
    }
}

void kvtuner_writes::find_where_threads_go_on(const ggml_cgraph & graph) {
    std::vector<const ggml_tensor *> running;  // since all threads last waited: of a write, its last step
    int last = -1;
    for (int i = 0; i < graph.n_nodes; ++i) {
        const kvtuner_write * write = starting_with(i);
        if (!is_done(graph.nodes[i]) || (covers(i) && !write)) {
            nodes[i].goes_on = true;
            continue;
        }
        const auto overlaps = [write](const ggml_tensor * node) { return can_overlap(*write, node); };
        if (write && last >= 0 && std::all_of(running.begin(), running.end(), overlaps)) {
            nodes[last].goes_on = true;
        } else {
            running.clear();
        }
        running.push_back(write ? write->set_rows : graph.nodes[i]);
        last = i;
    }
}
