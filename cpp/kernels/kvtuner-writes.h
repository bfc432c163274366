// The writes of new keys and values into a cache that one kernel can do: center, rotate, convert and store.
//
// A graph writes a row in up to four steps, each of them a launch: SUB (the center), MUL_MAT with a Hadamard matrix,
// and SET_ROWS, which converts. A write starts at its first step, whose input is alive then, and takes the place of
// all.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>

struct ggml_cgraph;
struct ggml_tensor;

struct kvtuner_write {
    const ggml_tensor * rows;      // f32; a row of the cache follows another after rows_stride bytes
    int64_t rows_stride;           // bytes
    const ggml_tensor * center;    // f32 [row length], or null
    int64_t rotation;              // values that one Walsh-Hadamard transform takes; 0: none
    const ggml_tensor * set_rows;  // the step that it ends with: the cache and the indices
};

class kvtuner_writes {
public:
    // those of a graph that a back end says it can do
    kvtuner_writes(const ggml_cgraph & graph, bool (*can_do)(const kvtuner_write &));

    // the write that starts with this node, or null
    const kvtuner_write * starting_with(const ggml_tensor * node) const;

    // whether a write that started before has done what this node does
    bool covers(const ggml_tensor * node) const;

private:
    std::unordered_map<const ggml_tensor *, kvtuner_write> by_first;
    std::unordered_set<const ggml_tensor *> covered;
};
