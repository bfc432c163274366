// Two halves in a register.
#pragma once

#include "kvtuner-cuda-runtime.cuh"

#include <cstdint>

namespace kvtuner::cuda {

// Registers hold two halves each, as the parts of a matrix that a lane has: g = lane / 4, t = lane % 4.
using pair = uint32_t;

inline __device__ pair as_pair(const half2 x) {
    return *(const pair *)&x;
}

inline __device__ half2 as_half2(const pair x) {
    return *(const half2 *)&x;
}

inline __device__ pair pair_of(const float low, const float high) {
    return as_pair(__floats2half2_rn(low, high));
}

inline __device__ pair times(const pair a, const pair b) {
    return as_pair(__hmul2(as_half2(a), as_half2(b)));
}

inline __device__ float float_of(const uint16_t half_bits) {
    return __half2float(__ushort_as_half(half_bits));
}

// bytes of a (0 to 3) and b (4 to 7), one a hexadecimal digit
inline __device__ uint32_t bytes_of(const uint32_t a, const uint32_t b, const uint32_t which) {
    return __byte_perm(a, b, which);
}

}  // namespace kvtuner::cuda
