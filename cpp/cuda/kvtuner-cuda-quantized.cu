#include "kvtuner-cuda-quantized.cuh"

#include "ggml-cuda/mmvq.cuh"
#include "ggml-impl.h"

#include <algorithm>

using kvtuner::cuda::quantized_rows;

static thread_local quantized_rows * of_thread = nullptr;  // of the graph that it computes

static size_t bytes_of(const ggml_tensor * rows) {
    return ggml_nrows(rows) * GGML_PAD(rows->ne[0], MATRIX_ROW_PADDING) / QK8_1 * sizeof(block_q8_1);
}

// whether upstream reads the rows of this product as q8_1 one by one
static bool is_of_vectors(const ggml_tensor * node) {
    return node->op == GGML_OP_MUL_MAT && ggml_is_quantized(node->src[0]->type) &&
           node->src[1]->type == GGML_TYPE_F32 && ggml_nrows(node->src[1]) <= MMVQ_MAX_BATCH_SIZE;
}

kvtuner_quantized_rows kvtuner_cuda_quantized(const ggml_backend_cuda_context & ctx, const ggml_tensor * rows) {
    return of_thread ? of_thread->read(ctx, rows) : kvtuner_quantized_rows{ nullptr, false };
}

char * kvtuner_cuda_quantizes(const ggml_backend_cuda_context & ctx, const ggml_tensor * rows) {
    return of_thread ? of_thread->make(ctx, rows) : nullptr;
}

quantized_rows::quantized_rows(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph,
                               const std::function<bool(const ggml_tensor *)> & is_elsewhere)
    : ctx(ctx), memory(ctx.pool()) {
    for (int i = 0; i < graph.n_nodes; ++i) {
        if (is_of_vectors(graph.nodes[i]) && !is_elsewhere(graph.nodes[i])) {
            n_bytes = std::max(n_bytes, bytes_of(graph.nodes[i]->src[1]));
        }
    }
    if (n_bytes > 0) {
        memory.alloc(n_bytes);
        of_thread = this;
    }
}

quantized_rows::~quantized_rows() {
    if (of_thread == this) {
        of_thread = nullptr;
    }
}

// On other streams than the first, products run side by side.
bool quantized_rows::has_place(const ggml_backend_cuda_context & of, const ggml_tensor * rows) const {
    return &of == &ctx && ctx.curr_stream_no == 0 && bytes_of(rows) <= n_bytes;
}

kvtuner_quantized_rows quantized_rows::read(const ggml_backend_cuda_context & of, const ggml_tensor * by_product) {
    if (!kept.is_product_of(by_product) || !has_place(of, by_product)) {
        return { nullptr, false };
    }
    return { memory.ptr, kept.take(by_product) };
}

char * quantized_rows::make(const ggml_backend_cuda_context & of, const ggml_tensor * rows) {
    if (!has_place(of, rows)) {
        return nullptr;
    }
    kept.take(rows);
    return memory.ptr;
}
