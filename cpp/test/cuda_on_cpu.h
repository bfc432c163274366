// CUDA on the CPU: as much of it as the kernels of cpp/cuda need, so that what they compute is tested without a GPU.
// The threads of a block are fibers that run one after the other; where those of a warp exchange values, or those of a
// block wait for each other, each waits for all others. To be included before the kernels, in a file that knows no
// ggml-common.h.
#pragma once

#include "ggml.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __host__
#define __device__
#define __global__ static
#define __shared__ thread_local  // so that an array may also be one from elsewhere: see kvtuner::cuda::shared
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct half {
    ggml_fp16_t bits;

    operator float() const;
};

using ggml_half = half;

struct alignas(4) half2 {
    half x, y;
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) {
    return { x, y };
}

inline float4 make_float4(float x, float y, float z, float w) {
    return { x, y, z, w };
}

inline uint2 make_uint2(unsigned x, unsigned y) {
    return { x, y };
}

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return { x, y, z, w };
}

struct dim3 {
    int x, y, z;

    dim3(int x = 1, int y = 1, int z = 1) : x(x), y(y), z(z) {
    }
};

using cudaStream_t = void *;

inline dim3 threadIdx, blockIdx, gridDim;  // of the fiber that runs

namespace cuda_on_cpu {

constexpr int WARP = 32;
constexpr int MOST_SHARED = 232448;  // bytes that a block can have

}  // namespace cuda_on_cpu

// the shared memory of a block, as the kernels that have some of a size set at the launch name it
namespace kvtuner::cuda {

inline __shared__ __align__(128) char shared[cuda_on_cpu::MOST_SHARED] = {};

}  // namespace kvtuner::cuda

namespace cuda_on_cpu {

// In which order threads get on where they may, and when copies in the background are made: at once, or not before
// something waits for them. What one order hides another one shows.
struct schedule {
    bool is_backward = false, are_copies_late = false;
};

inline schedule how;

struct launch {
    dim3 blocks, threads;
    int shared_bytes = 0;
};

// Runs a grid. Ends the program if threads wait for what never comes, or do what a GPU does not.
void run(const launch & grid, const std::function<void()> & kernel);

[[noreturn]] void fail(const char * why);

// what all threads of a warp do together
enum class together { SYNC, SHUFFLE, VOTE, PRODUCT, TRANSPOSE, LOAD };

struct words {
    uint32_t at[6];
};

// what each thread of the warp gave, until this thread's next exchange
const words * exchange(together what, const words & given);

int lane();  // of the fiber that runs

// until so many threads wait at this barrier of the block
void wait_at_barrier(int barrier, int n_threads);

// until it is true, which other threads see to
void wait_until(const std::function<bool()> & is_true);

// bytes of the block's shared memory at an address in it
char * shared_bytes_at(uint32_t address, int n_bytes);
uint32_t shared_address(const void * place);

// barriers in shared memory, and copies in the background that they wait for
void make_phases(uint32_t barrier, int n_arrivals);
void copy_later(uint32_t to, const void * from, int n_bytes);
void wait_for_copies();
void arrive_when_copied(uint32_t barrier);
void announce_bytes(uint32_t barrier, int n_bytes);
void arrive(uint32_t barrier);
void copy_for_phase(uint32_t to, const void * from, int n_bytes, uint32_t barrier);
void wait_for_phase(uint32_t barrier, int phase);

template <typename T>
T shuffled(T value, int from) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    words given = {};
    memcpy(given.at, &value, sizeof(value));
    memcpy(&value, exchange(together::SHUFFLE, given)[from].at, sizeof(value));
    return value;
}

}  // namespace cuda_on_cpu

inline half __float2half_rn(float x) {
    return { ggml_fp32_to_fp16(x) };
}

inline float __half2float(half x) {
    return x;
}

inline half __ushort_as_half(unsigned short bits) {
    return { bits };
}

inline void __threadfence() {
}

inline int atomicAdd(int * to, int value) {
    const int before = *to;
    *to += value;
    return before;
}

template <typename T>
inline T __ldcg(const T * from) {
    return *from;
}

inline half2 __floats2half2_rn(float x, float y) {
    return { __float2half_rn(x), __float2half_rn(y) };
}

inline half2 __hmul2(half2 a, half2 b) {
    return __floats2half2_rn(a.x * b.x, a.y * b.y);
}

inline half2 __hsub2(half2 a, half2 b) {
    return __floats2half2_rn(a.x - b.x, a.y - b.y);
}

// one rounding; products of halves are exact in a float, and so is all but the last bits of a sum in a double
inline half2 __hfma2(half2 a, half2 b, half2 c) {
    return __floats2half2_rn((float)((double)(a.x * b.x) + c.x), (float)((double)(a.y * b.y) + c.y));
}

inline half __low2half(half2 x) {
    return x.x;
}

inline half __high2half(half2 x) {
    return x.y;
}

inline int __hisinf(half x) {
    return std::isinf((float)x);
}

inline int min(int a, int b) {
    return a < b ? a : b;
}

inline int max(int a, int b) {
    return a > b ? a : b;
}

inline float rsqrtf(float x) {
    return 1 / sqrtf(x);
}

inline float __fmul_rn(float a, float b) {
    return a * b;
}

inline float __int_as_float(int x) {
    float y;
    memcpy(&y, &x, sizeof(y));
    return y;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}

inline int __ffs(int x) {
    return __builtin_ffs(x);
}

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}

inline int __clz(int x) {
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}

template <typename T>
inline T __shfl_sync(unsigned, T value, int lane) {
    return cuda_on_cpu::shuffled(value, lane);
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int n, int = cuda_on_cpu::WARP) {
    return cuda_on_cpu::shuffled(value, cuda_on_cpu::lane() ^ n);
}

inline unsigned __ballot_sync(unsigned, bool is_true) {
    const cuda_on_cpu::words * all = cuda_on_cpu::exchange(cuda_on_cpu::together::VOTE, { { is_true } });
    unsigned votes = 0;
    for (int i = 0; i < cuda_on_cpu::WARP; ++i) {
        votes |= all[i].at[0] << i;
    }
    return votes;
}

inline bool __any_sync(unsigned mask, bool is_true) {
    return __ballot_sync(mask, is_true) != 0;
}

inline bool __all_sync(unsigned mask, bool is_true) {
    return __ballot_sync(mask, is_true) == 0xffffffff;
}

inline void __syncwarp() {
    cuda_on_cpu::exchange(cuda_on_cpu::together::SYNC, {});
}

void __syncthreads();

inline size_t __cvta_generic_to_shared(const void * place) {
    return cuda_on_cpu::shared_address(place);
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
