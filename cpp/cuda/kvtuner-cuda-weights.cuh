// How products of weights and vectors get their weights, on Hopper: each block asks for its rows before the kernel
// before it has ended, as many bytes as its threads can ask for at once. They come to the L2 cache, which sees what is
// written later. On other cards this was not measured.
#pragma once

#include "kvtuner-cuda-runtime.cuh"

#include "ggml.h"

#include <cstdint>

constexpr uint32_t KVTUNER_LINE = 128;  // bytes that come at once

// By all threads of a block, whose rows have so many bytes: each asks for one line.
inline __device__ void kvtuner_ask_for_rows(const void * weights, const uint32_t n_bytes, const uint32_t thread) {
#if KVTUNER_NVIDIA_ARCH == 900
    if (thread * KVTUNER_LINE < n_bytes) {
        const char * rows = (const char *)weights + (size_t)blockIdx.x * n_bytes;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(rows + thread * KVTUNER_LINE));
    }
#endif
}

// How many blocks of a product a multiprocessor is to hold at least. More wait for more weights at a time, but have
// fewer registers: only the simplest type gains by it.
constexpr __host__ __device__ int kvtuner_product_blocks(ggml_type type, int n_columns, bool has_short_rows,
                                                         int n_warps) {
    const bool is_simple = type == GGML_TYPE_Q4_0 && n_columns == 1 && !has_short_rows;
    return KVTUNER_NVIDIA_ARCH == 900 && is_simple ? 64 / n_warps : 1;
}
