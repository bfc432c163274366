// Rows that products of quantized weights and vectors read as q8_1: they are quantized once where products come one
// after the other that read the same, and by attention or a norm where a product of its output comes next.
#pragma once

#include "ggml-cuda/common.cuh"
#include "kvtuner-last-rows.h"

#include <functional>

struct kvtuner_quantized_rows {
    char * data;    // where they belong; null: there is no place for them
    bool is_there;  // and need not be quantized
};

// for a product in the graph that this thread computes, which reads these rows as q8_1
kvtuner_quantized_rows kvtuner_cuda_quantized(const ggml_backend_cuda_context & ctx, const ggml_tensor * rows);

// Where the node that this thread computes is to put these rows as q8_1, which it makes. Null: nowhere.
char * kvtuner_cuda_quantizes(const ggml_backend_cuda_context & ctx, const ggml_tensor * rows);

namespace kvtuner::cuda {

// the rows of one graph that are quantized last
class quantized_rows {
public:
    // With memory for the most that a product of it reads which is not computed elsewhere: of the pool, which nothing
    // else may have of it then.
    quantized_rows(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph,
                   const std::function<bool(const ggml_tensor *)> & is_elsewhere);
    ~quantized_rows();

    quantized_rows(const quantized_rows &) = delete;
    quantized_rows & operator=(const quantized_rows &) = delete;

    // a node is about to be computed
    void go_on_to(const ggml_tensor * node) {
        kept.go_on_to(node);
    }

    kvtuner_quantized_rows read(const ggml_backend_cuda_context & of, const ggml_tensor * by_product);
    char * make(const ggml_backend_cuda_context & of, const ggml_tensor * rows);

private:
    bool has_place(const ggml_backend_cuda_context & of, const ggml_tensor * rows) const;

    const ggml_backend_cuda_context & ctx;
    ggml_cuda_pool_alloc<char> memory;
    size_t n_bytes = 0;
    last_rows kept;
};

}  // namespace kvtuner::cuda
