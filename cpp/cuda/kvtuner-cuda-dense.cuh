// Attention over a copy of the cache in f16, exact rows behind it, by upstream's kernels: for many queries, and where
// no kernel of ours runs.
#pragma once

#include "ggml-cuda/common.cuh"

#include <memory>
#include <vector>

namespace kvtuner::cuda {

// Masks of caches with those of exact rows behind them: the layers of a graph have the same few. They are memory of the
// pool, which nothing else may have of it then but what is given back before.
class joined_masks {
public:
    explicit joined_masks(ggml_backend_cuda_context & ctx) : ctx(ctx) {
    }

    ~joined_masks();

    // that of a node, which is made if no node before had the same
    half * of(const ggml_tensor * node);

private:
    struct joined {
        const ggml_tensor *cache, *exact;
        std::unique_ptr<ggml_cuda_pool_alloc<half>> both;
    };

    ggml_backend_cuda_context & ctx;
    std::vector<joined> kept;
};

// whether upstream has a kernel for such a copy
bool runs_dense(int device, const ggml_tensor * node);

// False: nothing was done. Upstream's kernels take the node as it is.
bool attend_dense(ggml_backend_cuda_context & ctx, ggml_tensor * node, joined_masks & masks);

}  // namespace kvtuner::cuda
