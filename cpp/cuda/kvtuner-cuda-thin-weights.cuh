// Rows of quantized weights as a factor of products: a step of 256 values, which lies in shared memory as in the file.
#pragma once

#include "kvtuner-cuda-halves.cuh"
#include "kvtuner-cuda-thin-rows.cuh"

#include "ggml.h"

namespace kvtuner::cuda {

// Of a type: the bytes of a step, from one step to the next in shared memory (a multiple of 16 which spreads rows over
// all banks), what codes are more than values, and whether blocks have a minimum. `codes` are values 4t and on, and
// 16 + 4t and on, of a block of 32.
template <ggml_type T>
struct thin_weights;

// four bytes that begin at an even address
inline __device__ uint32_t even_word(const char * at, const bool is_aligned) {
    const uint32_t * words = (const uint32_t *)(is_aligned ? at : at - 2);
    return is_aligned ? words[0] : __byte_perm(words[0], words[1], 0x5432);
}

inline __device__ float half_at(const char * at) {
    return __half2float(*(const half *)at);
}

template <>
struct thin_weights<GGML_TYPE_Q4_0> {
    static constexpr int BYTES = 144, STRIDE = 144, OFFSET = 8;
    static constexpr bool HAS_MIN = false;

    static __device__ void codes(const char * step, const int block, const int t, uint32_t & low, uint32_t & high) {
        const uint32_t both = even_word(step + 18 * block + 2 + 4 * t, block % 2 == 1);
        low = both & 0x0f0f0f0f;
        high = both >> 4 & 0x0f0f0f0f;
    }

    static __device__ float2 scale(const char * step, const int block) {
        return make_float2(half_at(step + 18 * block), 0);
    }
};

template <>
struct thin_weights<GGML_TYPE_Q8_0> {
    static constexpr int BYTES = 272, STRIDE = 272, OFFSET = 0;
    static constexpr bool HAS_MIN = false;

    static __device__ void codes(const char * step, const int block, const int t, uint32_t & low, uint32_t & high) {
        const char * at = step + 34 * block + 2 + 4 * t;
        low = even_word(at, block % 2 == 1);
        high = even_word(at + 16, block % 2 == 1);
    }

    static __device__ float2 scale(const char * step, const int block) {
        return make_float2(half_at(step + 34 * block), 0);
    }
};

template <>
struct thin_weights<GGML_TYPE_Q4_K> {
    static constexpr int BYTES = 144, STRIDE = 144, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    static __device__ void codes(const char * step, const int block, const int t, uint32_t & low, uint32_t & high) {
        const uint32_t * words = (const uint32_t *)(step + 16 + block / 2 * 32) + t;
        low = words[0] >> 4 * (block % 2) & 0x0f0f0f0f;
        high = words[4] >> 4 * (block % 2) & 0x0f0f0f0f;
    }

    // six bits each: of the first four blocks in a byte each, of the others four bits, and two more above the first
    // ones
    static __device__ float2 scale(const char * step, const int block) {
        const uint32_t * words = (const uint32_t *)(step + 4);
        const int shift = 8 * (block % 4);
        uint32_t scale = words[0] >> shift & 0x3f, least = words[1] >> shift & 0x3f;
        if (block >= 4) {
            scale = (words[2] >> shift & 0xf) | (words[0] >> (shift + 2) & 0x30);
            least = (words[2] >> (shift + 4) & 0xf) | (words[1] >> (shift + 2) & 0x30);
        }
        return make_float2(half_at(step) * (float)scale, half_at(step + 2) * (float)least);
    }
};

}  // namespace kvtuner::cuda
