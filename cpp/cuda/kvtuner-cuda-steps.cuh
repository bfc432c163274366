// Which steps of a graph kernels of ours do together: writes of keys and values, and attention with the rotations of
// queries before it and of its output behind it.
#pragma once

#include "kvtuner-cuda-plan.cuh"
#include "kvtuner-writes.h"

#include <unordered_map>
#include <vector>

struct ggml_backend_cuda_context;

class kvtuner_cuda_steps {
public:
    // Of a graph whose tensors have memory. None with GGML_CUDA_DISABLE_FUSION=1.
    kvtuner_cuda_steps(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph);

    // Does what starts with node i, if something does. True: nothing is left to be done for the node.
    bool run(int i) const;

private:
    void find_rotations(const ggml_cgraph & graph);

    ggml_backend_cuda_context & ctx;
    const kvtuner_writes writes;
    std::unordered_map<int, std::pair<ggml_tensor *, kvtuner::cuda::rotations>> attentions;  // by node
    std::vector<bool> is_covered;                                                            // empty without any
};
