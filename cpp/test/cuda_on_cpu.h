// CUDA on the CPU: as much of it as the kernels of cpp/cuda need, so that what they compute is tested without a GPU.
// The threads of a block are fibers that run one after the other; where those of a warp exchange values, each waits for
// all others. To be included before the kernels, in a file that knows no ggml-common.h.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <cstring>
#include <functional>

#define __device__
#define __global__ static
#define __shared__ static
#define __launch_bounds__(n_threads)

struct half {
    ggml_fp16_t bits;

    operator float() const {
        return ggml_fp16_to_fp32(bits);
    }
};

using ggml_half = half;

struct float2 {
    float x, y;
};

inline float2 make_float2(float x, float y) {
    return { x, y };
}

struct index3 {
    int x, y, z;
};

inline index3 threadIdx, blockIdx;  // of the fiber that runs

namespace cuda_on_cpu {

constexpr int WARP = 32;

// runs a grid of n_blocks with blocks of x * y threads; ends the program if threads of a warp wait for one that is done
void run(int n_blocks, int x, int y, const std::function<void()> & kernel);

// what thread `lane ^ n` of the warp gave
uint32_t exchange(uint32_t value, int n);

}  // namespace cuda_on_cpu

inline half __float2half_rn(float x) {
    return { ggml_fp32_to_fp16(x) };
}

inline float __half2float(half x) {
    return x;
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int n, int) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    bits = cuda_on_cpu::exchange(bits, n);
    memcpy(&value, &bits, sizeof(value));
    return value;
}

inline void __syncwarp() {
    cuda_on_cpu::exchange(0, 0);
}

// of the eight bytes of y and x that which each of four digits names
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned digits) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= (unsigned)(bytes >> 8 * (digits >> 4 * i & 7) & 0xff) << 8 * i;
    }
    return result;
}

inline void ggml_cuda_pdl_sync() {
}

inline void ggml_cuda_pdl_lc() {
}
