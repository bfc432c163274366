// The steps that write rows of keys and values into a cache, as they are found in a graph.
#pragma once

#include "kvtuner-writes.h"

#include <unordered_map>
#include <vector>

struct ggml_cgraph;
struct ggml_tensor;

namespace kvtuner {

using positions = std::unordered_map<const ggml_tensor *, int>;

// steps back through what only gives another shape to the same values in the same order
class chain {
public:
    // of values that have so many readers at most
    chain(const ggml_cgraph & graph, const positions & nodes, int most_readers)
        : graph(graph), nodes(nodes), most_readers(most_readers) {
    }

    // the step that made these values for no other reader, or null; what is walked past is kept in `passed`
    const ggml_tensor * producer(const ggml_tensor * values);

    std::vector<const ggml_tensor *> passed;

private:
    bool is_elidable(const ggml_tensor * node) const;

    const ggml_cgraph & graph;
    const positions & nodes;
    const int most_readers;
};

const ggml_tensor * storage_of(const ggml_tensor * tensor);

bool takes_rotation(const ggml_tensor * mul_mat, int64_t row_length);

// of a write; a scale is taken with the rotation after it
bool is_first_step(const ggml_tensor * node);

bool is_step(const ggml_tensor * node);

bool is_cache_write(const ggml_tensor * node);

// whether a node between the two reads the cache, which must then be as it was
bool is_read_between(const ggml_cgraph & graph, int first, int last);

// The center that SUB takes off, with what makes it. False where it is none.
bool find_center(const ggml_tensor * sub, int64_t row_length, chain & steps, kvtuner_write & write);

// The scale of the rows that are rotated, with its step. Null where they have none.
const ggml_tensor * find_scale(int64_t row_length, chain & steps, kvtuner_write & write);

}  // namespace kvtuner
