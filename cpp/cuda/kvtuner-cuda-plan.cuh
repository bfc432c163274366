// How a node of few queries is shared out among blocks of threads.
#pragma once

#include "kvtuner-cuda-launch.cuh"
#include "kvtuner-cuda-node.cuh"

namespace kvtuner::cuda {

struct attention_plan {
    attention_args args;
    attention_launch launch;
};

// None: the kernels do not take this node.
std::optional<attention_plan> plan_attention(const ggml_tensor * node, const rotations & around,
                                             const device_limits & limits);

// the kernels of a plan for heads of these sizes
inline void launch_plan(const attention_plan & plan, int64_t size_k, int64_t size_v) {
#define KVTUNER_SIZE(DK, DV, MOST_TILES)                                     \
    if (size_k == (DK) && size_v == (DV)) {                                  \
        return launch_attention<DK, DV, MOST_TILES>(plan.args, plan.launch); \
    }
    KVTUNER_CUDA_SIZES(KVTUNER_SIZE)
#undef KVTUNER_SIZE
    GGML_ABORT("attention with heads of %d and %d", (int)size_k, (int)size_v);
}

}  // namespace kvtuner::cuda
