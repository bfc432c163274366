// The write of new keys and values in one launch, bit for bit what its steps would store.
#pragma once

#include "kvtuner-rotations.h"
#include "kvtuner-writes.h"

#include "ggml.h"

#include <functional>
#include <unordered_map>

struct ggml_backend_cuda_context;

class kvtuner_cuda_writes {
public:
    // those of a graph that this back end does in one launch, two at a time; none if that is off
    kvtuner_cuda_writes(const ggml_cgraph & graph, bool is_off);

    // Takes the RoPE of keys and queries along with the writes that it comes before. `is_elsewhere`: which nodes are
    // done at another place.
    void take_rope(const std::function<bool(int)> & is_elsewhere);

    bool covers(int i) const {
        return writes.covers(i) || ((size_t)i < is_turned.size() && is_turned[i]);
    }

    // does what starts with node i, if something does
    void run(ggml_backend_cuda_context & ctx, int i) const;

private:
    static constexpr size_t MOST_BETWEEN = 16;  // steps that RoPE waits for

    struct group {
        std::vector<const kvtuner_write *> writes;
        std::vector<const ggml_tensor *> turned;  // RoPE of the rows of each, or null
        const ggml_tensor * queries = nullptr;    // RoPE of others

        bool takes(const ggml_cgraph & graph, int rope);
    };

    void find_groups();
    void take_rope(int first, group & g, const std::function<bool(int)> & is_elsewhere);

    const ggml_cgraph & graph;
    kvtuner_writes writes;
    std::unordered_map<int, group> groups;  // by the node that they start with
    std::vector<bool> is_turned;            // of each node
};
