// Products of quantized weights with some rows: see kvtuner-cuda-thin.cuh. Rows are quantized once where products come
// one after the other that read the same.
#pragma once

#include "ggml-cuda/common.cuh"
#include "kvtuner-last-rows.h"

namespace kvtuner::cuda {

// those of one graph
class thin_products {
public:
    // With memory for any: of the pool.
    thin_products(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph, bool is_off);

    // a node is about to be computed
    void go_on_to(const ggml_tensor * node) {
        kept.go_on_to(node);
    }

    bool takes(const ggml_tensor * node) const;

    // computes it, if it is such a product
    bool run(const ggml_tensor * node);

private:
    ggml_backend_cuda_context & ctx;
    ggml_cuda_pool_alloc<char> memory;
    size_t n_row_bytes = 0, n_part_bytes = 0;
    int n_tickets = 0;
    last_rows kept;
};

}  // namespace kvtuner::cuda
