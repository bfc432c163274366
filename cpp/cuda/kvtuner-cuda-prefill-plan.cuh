// How a node of many queries is shared out among blocks of threads.
#pragma once

#include "kvtuner-cuda-node.cuh"
#include "kvtuner-cuda-prefill-sizes.cuh"

namespace kvtuner::cuda {

struct prefill_plan {
    prefill_args args;
    prefill_launch launch;
};

// None: the kernels do not take this node.
std::optional<prefill_plan> plan_prefill(const ggml_tensor * node, const rotations & around,
                                         const device_limits & limits);

// what is to be marked, of a plan whose marks have a place
seen_args seen_of(const prefill_args & args);

// the kernels of a plan for heads of these sizes
inline void launch_plan(const prefill_plan & plan, int64_t size_k, int64_t size_v) {
#define KVTUNER_SIZE(DK, DV)                                   \
    if (size_k == (DK) && size_v == (DV)) {                    \
        return launch_prefill<DK, DV>(plan.args, plan.launch); \
    }
    KVTUNER_CUDA_PREFILL_SIZES(KVTUNER_SIZE)
#undef KVTUNER_SIZE
    GGML_ABORT("attention of many queries with heads of %d and %d", (int)size_k, (int)size_v);
}

}  // namespace kvtuner::cuda
