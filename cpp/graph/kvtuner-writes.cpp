#include "kvtuner-writes.h"

#include "kvtuner-write-steps.h"

#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>
#include <unordered_map>

using namespace kvtuner;

namespace {

bool is_done(const ggml_tensor * node) {
    return !ggml_op_is_empty(node->op) && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
}

// whether a write can run while a node before it does
bool can_overlap(const kvtuner_write & write, const ggml_tensor * node) {
    const auto is_apart = [&](const ggml_tensor * set_rows) {
        const ggml_tensor * cache = storage_of(set_rows);
        const auto is_read = [cache](const ggml_tensor * source) { return source && storage_of(source) == cache; };
        return storage_of(node) != cache && std::none_of(std::begin(node->src), std::end(node->src), is_read);
    };
    return storage_of(node) != storage_of(write.rows) &&
           std::all_of(write.stores.begin(), write.stores.end(), is_apart);
}

}  // namespace

// a write, and the steps that it takes the place of
struct kvtuner_writes::candidate {
    kvtuner_write write;
    std::vector<const ggml_tensor *> steps;  // without SET_ROWS; the last of them comes first in the graph

    const ggml_tensor * first() const {
        return steps.back();
    }
};

struct kvtuner_writes::finder {
    const ggml_cgraph & graph;
    const bool with_scale;
    positions nodes;          // of steps
    std::vector<int> stores;  // positions of SET_ROWS

    finder(const ggml_cgraph & graph, bool with_scale) : graph(graph), with_scale(with_scale) {
        for (int i = 0; i < graph.n_nodes; ++i) {
            if (is_step(graph.nodes[i])) {
                nodes[graph.nodes[i]] = i;
            } else if (is_cache_write(graph.nodes[i])) {
                stores.push_back(i);
            }
        }
    }

    // the write that ends with node `last`, if values of its steps have so many readers at most
    bool find(int last, int most_readers, candidate & found) const {
        const ggml_tensor * set_rows = graph.nodes[last];
        const int64_t row_length = set_rows->src[0]->ne[0];
        chain steps(graph, nodes, most_readers);
        kvtuner_write write = {};
        write.stores = { set_rows };
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
            const ggml_tensor * scaled = with_scale ? find_scale(row_length, steps, write) : nullptr;
            first = scaled ? scaled : first;
        }
        found = { write, steps.passed };
        return first && !is_read_between(graph, nodes.at(first), last);
    }

    // two writes of the same rotated rows, less of the same centers, as one
    static bool join(const candidate & a, const candidate & b, candidate & both) {
        if (a.first() != b.first() || a.write.rotation == 0 || a.write.center != b.write.center ||
            a.write.blocks != b.write.blocks) {
            return false;
        }
        both = a;
        both.write.stores.push_back(b.write.stores[0]);
        for (const ggml_tensor * step : b.steps) {
            if (std::find(a.steps.begin(), a.steps.end(), step) == a.steps.end()) {
                both.steps.insert(both.steps.begin(), step);
            }
        }
        return true;
    }

    // whether nobody else reads what the steps make
    bool is_closed(const candidate & c) const {
        std::unordered_map<const ggml_tensor *, int> readers;
        const auto read = [&](const ggml_tensor * node) {
            for (const ggml_tensor * source : node->src) {
                readers[source] += source != nullptr;
            }
        };
        std::for_each(c.steps.begin(), c.steps.end(), read);
        std::for_each(c.write.stores.begin(), c.write.stores.end(), read);
        return std::all_of(c.steps.begin(), c.steps.end(), [&](const ggml_tensor * step) {
            return readers[step] == ggml_node_get_use_count(&graph, nodes.at(step));
        });
    }
};

kvtuner_writes::kvtuner_writes(const ggml_cgraph & graph, bool (*can_do)(const kvtuner_write &), bool with_scale) {
    if (std::none_of(graph.nodes, graph.nodes + graph.n_nodes, is_first_step)) {
        return;  // as most graphs without a plan
    }
    const finder in(graph, with_scale);
    std::unordered_map<const ggml_tensor *, candidate> shared;  // those whose values have two readers, by first step
    for (int last : in.stores) {
        candidate one, both;
        if (!in.find(last, 2, one)) {
            continue;
        }
        const auto [other, is_new] = shared.emplace(one.first(), one);
        if (!is_new && finder::join(other->second, one, both) && in.is_closed(both) && can_do(both.write)) {
            add(both, in);
        }
    }
    for (int last : in.stores) {
        candidate one;
        if (!covers(last) && in.find(last, 1, one) && can_do(one.write)) {
            add(one, in);
        }
    }
    if (!writes.empty()) {
        find_where_threads_go_on(graph);
    }
}

void kvtuner_writes::add(const candidate & found, const finder & in) {
    nodes.resize(in.graph.n_nodes);
    nodes[in.nodes.at(found.first())].write = (int)writes.size();
    for (const ggml_tensor * step : found.steps) {
        nodes[in.nodes.at(step)].is_covered = true;
    }
    for (int i : in.stores) {
        for (const ggml_tensor * set_rows : found.write.stores) {
            nodes[i].is_covered = nodes[i].is_covered || in.graph.nodes[i] == set_rows;
        }
    }
    writes.push_back(found.write);
}

void kvtuner_writes::find_where_threads_go_on(const ggml_cgraph & graph) {
    std::vector<const ggml_tensor *> running;  // since all threads last waited: of a write, its last steps
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
        if (write) {
            running.insert(running.end(), write->stores.begin(), write->stores.end());
        } else {
            running.push_back(graph.nodes[i]);
        }
        last = i;
    }
}
