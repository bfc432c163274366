// How a node of few queries is shared out among blocks of threads.
#pragma once

#include "kvtuner-cuda-launch.cuh"
#include "kvtuner-rotations.h"

#include <optional>

namespace kvtuner::cuda {

struct device_limits {
    int n_multiprocessors;
    int shared_bytes;  // that one block of threads can have; so many a multiprocessor has
    bool takes_rows;   // whether it copies whole rows
};

struct attention_plan {
    attention_args args;
    attention_launch launch;
    int64_t n_columns;  // of a stream, of all heads
};

// None: the kernels do not take this node.
std::optional<attention_plan> plan_attention(const ggml_tensor * node, const rotations & around,
                                             const device_limits & limits);

}  // namespace kvtuner::cuda
