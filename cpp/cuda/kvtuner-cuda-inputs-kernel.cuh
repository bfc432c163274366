// Inputs of a graph that one kernel brings from memory of the host to where each belongs: a copy of each by itself
// takes longer than the kernel does for all.
#pragma once

#include "kvtuner-cuda-runtime.cuh"

#include "ggml-cuda/common.cuh"

#include <cstdint>

namespace kvtuner::cuda {

constexpr int INPUT_CHUNK = 16;  // bytes that a thread brings at once
constexpr int INPUT_THREADS = 256, MOST_INPUT_BLOCKS = 16;
constexpr int MOST_INPUTS = 32;  // of one launch

struct staged_input {
    char * to;
    uint32_t at, bytes;  // the first is a multiple of INPUT_CHUNK
};

struct staged_inputs {
    const char * from;
    staged_input of[MOST_INPUTS];
};

// Blocks of threads with the same y have the same input. Where it goes to need not be aligned. Later kernels read some
// inputs before they wait for the one before them: so no kernel may start before this one has ended.
inline __global__ void __launch_bounds__(INPUT_THREADS) bring_inputs(const staged_inputs a) {
    const staged_input input = a.of[blockIdx.y];
    const char * from = a.from + input.at;
    const bool is_aligned = (uintptr_t)input.to % INPUT_CHUNK == 0;
    const uint32_t step = gridDim.x * INPUT_THREADS * INPUT_CHUNK;
    ggml_cuda_pdl_sync();  // the graph before may still read its own
    for (uint32_t i = (blockIdx.x * INPUT_THREADS + threadIdx.x) * INPUT_CHUNK; i < input.bytes; i += step) {
        const uint4 chunk = *(const uint4 *)(from + i);
        const uint32_t left = input.bytes - i;
        if (is_aligned && left >= INPUT_CHUNK) {
            *(uint4 *)(input.to + i) = chunk;
        } else {
            for (uint32_t k = 0; k < INPUT_CHUNK && k < left; ++k) {
                input.to[i + k] = ((const char *)&chunk)[k];
            }
        }
    }
    __threadfence();
}

}  // namespace kvtuner::cuda
