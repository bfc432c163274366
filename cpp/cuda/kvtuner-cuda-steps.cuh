// Which steps of a graph kernels of ours do together: writes of keys and values with the RoPE before them, and
// attention with the rotations of queries before it and of its output behind it, and norms with their weights. The last
// two quantize what they make for the product that comes next. With a plan, products of weights with some rows, too.
#pragma once

#include "kvtuner-cuda-attention.cuh"
#include "kvtuner-cuda-norm.cuh"
#include "kvtuner-cuda-quantized.cuh"
#include "kvtuner-cuda-thin-products.cuh"
#include "kvtuner-cuda-write.cuh"

#include <unordered_map>
#include <vector>

class kvtuner_cuda_steps {
public:
    // Of a graph whose tensors have memory. None with GGML_CUDA_DISABLE_FUSION=1.
    kvtuner_cuda_steps(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph);

    // Does what starts with node i, if something does. True: nothing is left to be done for the node.
    bool run(int i) const;

private:
    void find_norms();
    void find_rotations();

    ggml_backend_cuda_context & ctx;
    const ggml_cgraph & graph;
    kvtuner_cuda_writes writes;
    std::unordered_map<int, kvtuner::rotations> attentions;  // by node
    std::unordered_map<int, kvtuner::multiplied_norm> norms;
    std::vector<bool> is_covered;                     // weights of norms, rotations around attention
    mutable kvtuner::cuda::thin_products thin;        // of a graph with a plan
    mutable kvtuner::cuda::quantized_rows quantized;  // of products of the nodes that have run
    mutable kvtuner::cuda::kept_masks masks;          // of the nodes that have run
};
