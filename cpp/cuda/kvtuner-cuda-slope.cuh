// ALiBi: what the masks of a query head are multiplied by.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"

namespace kvtuner::cuda {

// in powers of two; without ALiBi that of 1
inline __device__ float slope_of(const node_args & a, const int head) {
    if (a.max_bias == 0) {
        return LOG2_E;
    }
    const int n_head = a.n_head_kv * a.group, n_log2 = 1 << (31 - __clz(n_head));
    const float exponent = head < n_log2 ? (head + 1) / (float)n_log2 : (2 * (head - n_log2) + 1) / (2.0f * n_log2);
    return LOG2_E * exp2f(-a.max_bias * exponent);
}

}  // namespace kvtuner::cuda
