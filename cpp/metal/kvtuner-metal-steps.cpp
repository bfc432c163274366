#include "kvtuner-metal-steps.h"

#include "kvtuner-metal-write.h"

#include "ggml-impl.h"

#include <algorithm>

namespace {

// what a write touches, by nodes that do, and by values that it does not make, which only makes it wait
std::vector<const ggml_tensor *> touched(const kvtuner_write & write, const ggml_tensor * first) {
    std::vector<const ggml_tensor *> nodes = { first };
    nodes.insert(nodes.end(), write.stores.begin(), write.stores.end());
    return nodes;
}

ggml_cgraph part_of(const ggml_cgraph & graph, int first, int end) {
    ggml_cgraph part = graph;
    part.nodes += first;
    part.n_nodes = end - first;
    return part;
}

void wait(ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges) {
    ggml_metal_encoder_memory_barrier(encoder);
    ggml_mem_ranges_reset(ranges);
}

}  // namespace

kvtuner_metal_steps::kvtuner_metal_steps(const ggml_cgraph & graph, int first, int end, bool is_off)
    : writes(part_of(graph, first, end), is_off ? [](const kvtuner_write &) { return false; } : kvtuner_metal_can_write,
             /*with_scale =*/true) {
    for (int i = first; writes.unless_none() && i < end; ++i) {
        places[graph.nodes[i]] = i - first;
    }
}

bool kvtuner_metal_steps::run(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
                              const ggml_tensor * node) const {
    const auto found = places.find(node);
    if (found == places.end() || !writes.covers(found->second)) {
        return false;
    }
    const kvtuner_write * write = writes.starting_with(found->second);
    if (!write) {
        return true;
    }
    const auto nodes = touched(*write, node);
    const auto is_apart = [&](const ggml_tensor * one) { return ggml_mem_ranges_check(ranges, one); };
    if (ranges && !std::all_of(nodes.begin(), nodes.end(), is_apart)) {
        wait(encoder, ranges);
    }
    kvtuner_metal_write(ggml_metal_library_get_device(library), encoder, *write);
    for (const ggml_tensor * one : nodes) {
        if (ranges && !ggml_mem_ranges_add(ranges, one)) {
            wait(encoder, ranges);
        }
    }
    return true;
}
