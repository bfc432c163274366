// The writes of new keys and values into a cache that one kernel can do: scale, rotate, center, convert and store.
//
// A graph writes a row in up to five steps, each of them a launch: MUL (the scale), MUL_MAT with a Hadamard matrix,
// GET_ROWS out of a table of centers, SUB (the center), and SET_ROWS, which converts. A write starts at its first step,
// whose input is alive then, and takes the place of all. Where a row is also stored as it is, beside the cache, both
// are one write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct ggml_cgraph;
struct ggml_tensor;

struct kvtuner_write {
    const ggml_tensor * rows;    // f32; a row of the cache follows another after rows_stride bytes
    int64_t rows_stride;         // bytes
    const ggml_tensor * scale;   // f32 [row length], by which rows are multiplied before they are rotated, or null
    int64_t rotation;            // values that one Walsh-Hadamard transform takes; 0: none
    const ggml_tensor * center;  // f32 [row length], or null; f16 [row length, blocks] where each block has its own
    const ggml_tensor * blocks;  // I32, of each row; null where one center serves all
    std::vector<const ggml_tensor *> stores;  // SET_ROWS, one or two: caches and indices
};

class kvtuner_writes {
public:
    // Those of a graph that a back end says it can do. with_scale: whether it multiplies by a scale, too, or leaves
    // that a step of its own.
    kvtuner_writes(const ggml_cgraph & graph, bool (*can_do)(const kvtuner_write &), bool with_scale);

    // null where the graph has no write
    const kvtuner_writes * unless_none() const {
        return writes.empty() ? nullptr : this;
    }

    // the write that starts with node i of the graph, or null
    const kvtuner_write * starting_with(int i) const {
        return (size_t)i < nodes.size() && nodes[i].write >= 0 ? &writes[nodes[i].write] : nullptr;
    }

    // whether a write that started with node i or before does what node i does
    bool covers(int i) const {
        return (size_t)i < nodes.size() && nodes[i].is_covered;
    }

    // whether what comes next can run while other threads are still at node i: it is a write of older values
    bool goes_on_after(int i) const {
        return (size_t)i < nodes.size() && nodes[i].goes_on;
    }

private:
    struct node_state {
        int write = -1;
        bool is_covered = false;
        bool goes_on = false;
    };

    struct candidate;
    struct finder;

    void add(const candidate & found, const finder & in);
    void find_where_threads_go_on(const ggml_cgraph & graph);

    std::vector<kvtuner_write> writes;
    std::vector<node_state> nodes;  // of the graph; empty without a write
};
