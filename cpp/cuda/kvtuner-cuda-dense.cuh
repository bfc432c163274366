// Attention over a copy of the cache in f16, exact rows behind it, by upstream's kernels: for many queries, and where
// no kernel of ours runs.
#pragma once

#include "kvtuner-cuda-kept.cuh"

namespace kvtuner::cuda {

// whether upstream has a kernel for such a copy
bool runs_dense(int device, const ggml_tensor * node);

// False: nothing was done. Upstream's kernels take the node as it is.
bool attend_dense(ggml_backend_cuda_context & ctx, ggml_tensor * node, kept_masks & masks);

}  // namespace kvtuner::cuda
