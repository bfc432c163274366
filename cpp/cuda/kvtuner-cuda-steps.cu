#include "kvtuner-cuda-steps.cuh"

#include "ggml-impl.h"
#include "kvtuner-mark.h"

#include <algorithm>
#include <cstdlib>

using kvtuner::overlaps;
using kvtuner::places;
using kvtuner::rotations;

namespace {

static bool is_off() {
    static const bool value = [] {
        const char * text = getenv("GGML_CUDA_DISABLE_FUSION");
        return text && atoi(text) != 0;
    }();
    return value;
}

// Whether rows must not be rounded to 8 bits, as upstream sees to it: a tuning asks for that while it measures.
static bool are_products_of_floats() {
#ifdef GGML_CUDA_FORCE_CUBLAS
    return true;
#else
    return getenv("KVTUNER_FLOAT_PRODUCTS") != nullptr;
#endif
}

static bool is_of_plan(const ggml_tensor * node) {
    return node->op == GGML_OP_FLASH_ATTN_EXT && kvtuner_is_marked(node);
}

static bool has_plan(const ggml_cgraph & graph) {
    return std::any_of(graph.nodes, graph.nodes + graph.n_nodes, is_of_plan);
}

}  // namespace

kvtuner_cuda_steps::kvtuner_cuda_steps(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph)
    : ctx(ctx),
      graph(graph),
      writes(graph, is_off()),
      thin(ctx, graph, is_off() || are_products_of_floats() || !has_plan(graph)),
      quantized(ctx, graph, [this](const ggml_tensor * node) { return is_off() || thin.takes(node); }),
      masks(ctx) {
    is_covered.resize(graph.n_nodes);
    if (!is_off()) {
        find_norms();
        find_rotations();
        writes.take_rope(
                [this](int i) { return is_covered[i] && norms.count(i - 1) == 0; });  // which norms do in place
    }
}

// Where products run side by side, upstream has to see the last node before them.
void kvtuner_cuda_steps::find_norms() {
    const auto & side_by_side = ctx.stream_context().concurrent_events;
    for (int i = 0; i < graph.n_nodes; ++i) {
        const auto norm = kvtuner::find_norm(graph, i);
        if (norm && kvtuner_cuda_takes(*norm) && !writes.covers(i) && !writes.covers(i + 1) &&
            side_by_side.count(norm->out) == 0) {
            norms.emplace(i, *norm);
            is_covered[i + 1] = true;
        }
    }
}

void kvtuner_cuda_steps::find_rotations() {
    if (!has_plan(graph)) {
        return;
    }
    const places in(graph);
    const auto is_kept = [&](const ggml_tensor * values, int first, int last) {
        return in.is_kept(values, first, last, [&](int i) { return writes.covers(i); }, overlaps);
    };
    for (int i = 0; i < graph.n_nodes; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        if (!is_of_plan(node)) {
            continue;
        }
        rotations & around = attentions[i];
        if (!kvtuner_cuda_attention_rotates(ctx.device, node)) {
            continue;
        }
        const ggml_tensor *before = in.rotation_before(node), *behind = in.rotation_behind(i);
        const auto reads_queries_before = [&](const ggml_tensor * out) {
            return before && is_kept(before->src[1], in.at.at(before), i) && !overlaps(before->src[1], out);
        };
        // rows may be stored there before others have read what the node reads
        const auto is_free = [&](const ggml_tensor * out) {
            const auto first = node->src + (reads_queries_before(out) ? 1 : 0);
            return std::none_of(first, node->src + GGML_MAX_SRC,
                                [=](const ggml_tensor * source) { return source && overlaps(source, out); });
        };
        if (behind && is_free(behind)) {
            around.out = behind;
            around.out_length = behind->ne[0];
            is_covered[in.at.at(behind)] = true;
        }
        if (reads_queries_before(around.out ? around.out : node)) {
            around.q = before->src[1];
            around.q_length = before->ne[0];
            is_covered[in.at.at(before)] = true;
        }
        around.multiplied = kvtuner::multiplied_next(graph, around.out ? in.at.at(around.out) : i);
    }
}

bool kvtuner_cuda_steps::run(int i) const {
    writes.run(ctx, i);
    if (writes.covers(i) || is_covered[i]) {
        return true;
    }
    quantized.go_on_to(graph.nodes[i]);
    thin.go_on_to(graph.nodes[i]);
    if (thin.run(graph.nodes[i])) {
        return true;
    }
    const auto norm = norms.find(i);
    if (norm != norms.end()) {
        kvtuner_cuda_norm(ctx, norm->second);
        return true;
    }
    const auto found = attentions.find(i);
    return found != attentions.end() && kvtuner_cuda_attention(ctx, graph.nodes[i], found->second, masks);
}
