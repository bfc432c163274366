// Arithmetic of IEEE 754 on the GPU whatever the flags: ggml-cuda is compiled with -use_fast_math, which takes
// denormals for zero (in __fmul_rn and its kin, too), makes one rounding of a product and a sum, and divides and takes
// roots with an error.
#pragma once

#include <cmath>
#include <cstring>

#if defined(__CUDA_ARCH__) && !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
#    define KVTUNER_EXACT(name, instruction, plain)                          \
        inline __device__ float name(const float a, const float b) {         \
            float result;                                                    \
            asm(instruction " %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b)); \
            return result;                                                   \
        }
#    define KVTUNER_EXACT_OF_ONE(name, instruction, plain)       \
        inline __device__ float name(const float a) {            \
            float result;                                        \
            asm(instruction " %0, %1;" : "=f"(result) : "f"(a)); \
            return result;                                       \
        }
#else
#    if defined(__clang__)
#        define KVTUNER_NOT_CONTRACTED _Pragma("clang fp contract(off)")
#    else
#        define KVTUNER_NOT_CONTRACTED
#    endif
#    define KVTUNER_EXACT(name, instruction, plain)                  \
        inline __device__ float name(const float a, const float b) { \
            KVTUNER_NOT_CONTRACTED                                   \
            return plain;                                            \
        }
#    define KVTUNER_EXACT_OF_ONE(name, instruction, plain) \
        inline __device__ float name(const float a) {      \
            return plain;                                  \
        }
#endif

namespace kvtuner::exact {

KVTUNER_EXACT(add, "add.rn.f32", a + b)
KVTUNER_EXACT(mul, "mul.rn.f32", a * b)
KVTUNER_EXACT(div, "div.rn.f32", a / b)
KVTUNER_EXACT_OF_ONE(root, "sqrt.rn.f32", sqrtf(a))

// Comparisons and magnitudes by bits: those of floats take denormals for zero, in whatever words they are asked for.
inline __device__ unsigned bits_of(const float a) {
    unsigned bits;
    memcpy(&bits, &a, sizeof(bits));
    return bits;
}

inline __device__ float size(const float a) {
    const unsigned bits = bits_of(a) & 0x7fffffffu;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

inline __device__ bool is_negative(const float a) {
    return bits_of(a) > 0x80000000u;
}

// neither is negative
inline __device__ bool is_at_least(const float a, const float b) {
    return bits_of(a) >= bits_of(b);
}

}  // namespace kvtuner::exact

#undef KVTUNER_EXACT
#undef KVTUNER_EXACT_OF_ONE
