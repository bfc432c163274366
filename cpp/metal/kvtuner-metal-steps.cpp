#include "kvtuner-metal-steps.h"

#include "kvtuner-metal-attention.h"
#include "kvtuner-metal-write.h"

#include "ggml-backend.h"
#include "ggml-impl.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

constexpr size_t MOST_KEPT = 64;  // parts of graphs whose steps are known

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

// what a node writes to, with what it has behind its result, and what another lies on
bool writes_to(const ggml_tensor * node, const ggml_tensor * other) {
    const ggml_tensor * storage = node->view_src ? node->view_src : node;
    const char *first = (const char *)node->data, *second = (const char *)other->data;
    const size_t n = ggml_backend_buffer_get_alloc_size(storage->buffer, node);
    return first < second + ggml_nbytes(other) && second < first + n;
}

bool reads(const ggml_tensor * node, const ggml_tensor * other) {
    return std::any_of(node->src, node->src + GGML_MAX_SRC,
                       [&](const ggml_tensor * source) { return source && kvtuner::overlaps(source, other); });
}

// the nodes of one encoder wait for others here, until `do_it` has encoded what these stand for
template <typename DO>
void in_order(ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges, const std::vector<const ggml_tensor *> & nodes,
              const DO & do_it) {
    const auto is_apart = [&](const ggml_tensor * one) { return ggml_mem_ranges_check(ranges, one); };
    if (ranges && !std::all_of(nodes.begin(), nodes.end(), is_apart)) {
        wait(encoder, ranges);
    }
    do_it();
    for (const ggml_tensor * one : nodes) {
        if (ranges && !ggml_mem_ranges_add(ranges, one)) {
            wait(encoder, ranges);
        }
    }
}

}  // namespace

// of a part of a graph
struct kvtuner_metal_steps::found_steps {
    kvtuner_writes writes;
    std::unordered_map<const ggml_tensor *, int> places;  // of its nodes; empty without a write
    std::unordered_map<const ggml_tensor *, kvtuner::rotations> attentions;
    std::unordered_set<const ggml_tensor *> rotated;  // what these attentions do

    found_steps(const ggml_cgraph & part, bool is_off)
        : writes(part, is_off ? [](const kvtuner_write &) { return false; } : kvtuner_metal_can_write,
                 /*with_scale =*/true) {
        for (int i = 0; writes.unless_none() && i < part.n_nodes; ++i) {
            places[part.nodes[i]] = i;
        }
        if (!is_off) {
            find_rotations(part);
        }
    }

private:
    void find_rotations(const ggml_cgraph & part);
};

void kvtuner_metal_steps::found_steps::find_rotations(const ggml_cgraph & part) {
    if (std::none_of(part.nodes, part.nodes + part.n_nodes, kvtuner_metal_attends)) {
        return;
    }
    const kvtuner::places in(part);
    const auto is_kept = [&](const ggml_tensor * values, int first, int last) {
        return in.is_kept(values, first, last, [&](int i) { return writes.covers(i); }, writes_to);
    };
    for (int i = 0; i < part.n_nodes; ++i) {
        const ggml_tensor * node = part.nodes[i];
        if (!kvtuner_metal_attends(node)) {
            continue;
        }
        kvtuner::rotations around;
        const ggml_tensor *before = in.rotation_before(node), *behind = in.rotation_behind(i);
        if (before && is_kept(before->src[1], in.at.at(before), i) && !writes_to(node, before->src[1])) {
            around.q = before->src[1];
            around.q_length = before->ne[0];
        }
        // rows of the result may be stored before all has been read
        if (behind && !reads(node, behind) && !(around.q && kvtuner::overlaps(around.q, behind))) {
            around.out = behind;
            around.out_length = behind->ne[0];
        }
        if (around.q || around.out) {
            attentions[node] = around;
            rotated.insert({ around.q ? before : nullptr, around.out });
        }
    }
}

// Those of a graph that runs again and again are found once; encoders of its parts may ask at the same time.
kvtuner_metal_steps::kvtuner_metal_steps(const ggml_cgraph & graph, int first, int end, bool is_off) {
    static std::mutex lock;
    static auto & kept = *new std::map<std::tuple<uint64_t, int, int, bool>, std::shared_ptr<const found_steps>>();
    const auto find = [&] { return std::make_shared<const found_steps>(part_of(graph, first, end), is_off); };
    if (graph.uid == 0) {
        found = find();
        return;
    }
    const std::lock_guard<std::mutex> locked(lock);
    const std::tuple<uint64_t, int, int, bool> key(graph.uid, first, end, is_off);
    const auto known = kept.find(key);
    if (known != kept.end()) {
        found = known->second;
        return;
    }
    if (kept.size() >= MOST_KEPT) {
        kept.clear();
    }
    found = kept[key] = find();
}

void kvtuner_metal_steps::write(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
                                const kvtuner_write & write, const ggml_tensor * first) const {
    in_order(encoder, ranges, touched(write, first),
             [&] { kvtuner_metal_write(ggml_metal_library_get_device(library), encoder, write); });
}

void kvtuner_metal_steps::attend(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
                                 const ggml_tensor * node, const kvtuner::rotations & around) const {
    // parts of the result lie where the node has its own
    std::vector<const ggml_tensor *> nodes = { node };
    ggml_tensor unrotated = *node;
    if (around.q) {
        unrotated.src[0] = const_cast<ggml_tensor *>(around.q);
        nodes.push_back(&unrotated);
    }
    if (around.out) {
        nodes.push_back(around.out);
    }
    in_order(encoder, ranges, nodes,
             [&] { kvtuner_metal_attend(ggml_metal_library_get_device(library), encoder, node, around); });
}

bool kvtuner_metal_steps::run(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
                              const ggml_tensor * node) const {
    if (found->rotated.count(node)) {
        return true;
    }
    const auto attention = found->attentions.find(node);
    if (attention != found->attentions.end()) {
        attend(library, encoder, ranges, node, attention->second);
        return true;
    }
    const auto place = found->places.find(node);
    if (place == found->places.end() || !found->writes.covers(place->second)) {
        return false;
    }
    if (const kvtuner_write * first = found->writes.starting_with(place->second)) {
        write(library, encoder, ranges, *first, node);
    }
    return true;
}
