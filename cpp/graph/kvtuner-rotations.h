// The rotations of queries before attention and of its output behind it, where nothing else reads what they make.
#pragma once

#include "kvtuner-multiplied.h"
#include "kvtuner-write-steps.h"

namespace kvtuner {

// What is rotated before and after a node, and where the rotated rows go. Null: the node's own query and output.
struct rotations {
    const ggml_tensor * q = nullptr;  // queries before a rotation, [values, heads, tokens]
    int64_t q_length = 0;
    const ggml_tensor * out = nullptr;
    int64_t out_length = 0;
    const ggml_tensor * multiplied = nullptr;  // the output as the rows that a product of weights reads next, or null
};

// in memory
inline bool overlaps(const ggml_tensor * a, const ggml_tensor * b) {
    const char *first = (const char *)a->data, *second = (const char *)b->data;
    return first < second + ggml_nbytes(b) && second < first + ggml_nbytes(a);
}

// a graph and where its nodes are
struct places {
    const ggml_cgraph & graph;
    positions at;

    explicit places(const ggml_cgraph & graph) : graph(graph) {
        for (int i = 0; i < graph.n_nodes; ++i) {
            at[graph.nodes[i]] = i;
        }
    }

    bool has_one_reader(const ggml_tensor * node) const {
        const auto found = at.find(node);
        return found != at.end() && ggml_node_get_use_count(&graph, found->second) == 1 &&
               (node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0;
    }

    // the rotation that made the queries of a node for it alone, or null
    const ggml_tensor * rotation_before(const ggml_tensor * node) const {
        const ggml_tensor * q = node->src[0];
        while (is_view(q) && has_one_reader(q)) {
            q = q->src[0];
        }
        const bool is_one = is_rotation(q, node->src[0]->ne[0]) && has_one_reader(q) && q->data == node->src[0]->data;
        return is_one ? q : nullptr;
    }

    // the rotation that alone reads the output of node i, or null
    const ggml_tensor * rotation_behind(int i) const {
        const ggml_tensor * last = graph.nodes[i];
        const int64_t size = last->ne[0];
        for (int k = i + 1; k < graph.n_nodes && has_one_reader(last); ++k) {
            const ggml_tensor * next = graph.nodes[k];
            if (is_rotation(next, size) && next->src[1] == last) {
                return next;
            }
            if (!ggml_op_is_empty(next->op)) {
                return nullptr;
            }
            if (is_view(next) && next->src[0] == last && ggml_is_contiguous(next)) {
                last = next;
            }
        }
        return nullptr;
    }

    // Whether values are as they were from a node up to another: none between `changes` them that is not done
    // elsewhere.
    template <typename ELSEWHERE, typename CHANGES>
    bool is_kept(const ggml_tensor * values, int first, int last, const ELSEWHERE & is_elsewhere,
                 const CHANGES & changes) const {
        for (int i = first + 1; i < last; ++i) {
            const ggml_tensor * node = graph.nodes[i];
            if (!ggml_op_is_empty(node->op) && !is_elsewhere(i) && changes(node, values)) {
                return false;
            }
        }
        return true;
    }

private:
    // of values that others read in rows of `size`, as the kernels do it
    static bool is_rotation(const ggml_tensor * node, int64_t size) {
        return takes_rotation(node, size) && node->ne[0] >= 4;
    }
};

}  // namespace kvtuner
