// What the kernels of cpp/cuda take of upstream's header of this name, on the CPU.
#pragma once

#include "cuda_on_cpu.h"

#define CUDA_SET_SHARED_MEMORY_LIMIT(kernel, n_bytes)

inline void ggml_cuda_pdl_sync() {
}

inline void ggml_cuda_pdl_lc() {
}

inline float warp_reduce_sum(float x) {
    for (int n = cuda_on_cpu::WARP / 2; n > 0; n /= 2) {
        x += __shfl_xor_sync(0xffffffff, x, n);
    }
    return x;
}

inline float warp_reduce_max(float x) {
    for (int n = cuda_on_cpu::WARP / 2; n > 0; n /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, n));
    }
    return x;
}

struct ggml_cuda_kernel_launch_params {
    cuda_on_cpu::launch grid;

    ggml_cuda_kernel_launch_params(dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t)
        : grid{ blocks, threads, (int)shared_bytes } {
    }
};

template <typename ARGS>
void ggml_cuda_kernel_launch(void (*kernel)(ARGS), const ggml_cuda_kernel_launch_params & params, const ARGS & args) {
    cuda_on_cpu::run(params.grid, [&] { kernel(args); });
}
