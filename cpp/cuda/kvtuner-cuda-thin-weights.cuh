// Rows of quantized weights as a factor of products: a step of 256 values, which lies in shared memory as in the file.
#pragma once

#include "kvtuner-cuda-halves.cuh"
#include "kvtuner-cuda-thin-rows.cuh"

#include "ggml.h"

#include <type_traits>

namespace kvtuner::cuda {

// Of a type: the bytes of a step, those that are copied (from a multiple of 16 on), from one row to the next in shared
// memory (which spreads rows over all banks), what codes are more than values, and what else a block of 32 has: a
// second scale for its last 16 values, or a minimum. `codes` are values 4t and on, and 16 + 4t and on, of a block.
template <ggml_type T>
struct thin_weights;

enum class thin_second { NONE, SCALE, MINIMUM };

// four bytes that begin at an even address
inline __device__ uint32_t even_word(const char * at, const bool is_aligned) {
    const uint32_t * words = (const uint32_t *)(is_aligned ? at : at - 2);
    return is_aligned ? words[0] : __byte_perm(words[0], words[1], 0x5432);
}

inline __device__ uint32_t any_even_word(const char * at) {
    const int odd = (int)((uintptr_t)at % 4);
    const uint32_t * words = (const uint32_t *)(at - odd);
    return __byte_perm(words[0], words[1], odd == 0 ? 0x3210 : 0x5432);
}

inline __device__ float half_at(const char * at) {
    return __half2float(*(const half *)at);
}

template <>
struct thin_weights<GGML_TYPE_Q4_0> {
    static constexpr int BYTES = 144, COPIED = 144, STRIDE = 144, OFFSET = 8;
    static constexpr thin_second SECOND = thin_second::NONE;

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
    static constexpr int BYTES = 272, COPIED = 272, STRIDE = 272, OFFSET = 0;
    static constexpr thin_second SECOND = thin_second::NONE;

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
    static constexpr int BYTES = 144, COPIED = 144, STRIDE = 144, OFFSET = 0;
    static constexpr thin_second SECOND = thin_second::MINIMUM;

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

template <>
struct thin_weights<GGML_TYPE_Q6_K> {
    static constexpr int BYTES = 210, COPIED = 224, STRIDE = 240, OFFSET = 0;
    static constexpr thin_second SECOND = thin_second::SCALE;

    // four bits of each, then two bits, scales of 16 values, and a scale of all
    static __device__ uint32_t four_codes(const char * low, const char * high, const int quarter) {
        const uint32_t bits = any_even_word(low) >> quarter / 2 * 4 & 0x0f0f0f0f;
        const uint32_t more = any_even_word(high) >> 2 * quarter & 0x03030303;
        return ((bits | more << 4 | 0x80808080) - 0x20202020) ^ 0x80808080;  // less 32 each
    }

    static __device__ void codes(const char * step, const int block, const int t, uint32_t & low, uint32_t & high) {
        const int half = block / 4, quarter = block % 4;
        const char * bits = step + 64 * half + 32 * (quarter % 2) + 4 * t;
        const char * more = step + 128 + 32 * half + 4 * t;
        low = four_codes(bits, more, quarter);
        high = four_codes(bits + 16, more + 16, quarter);
    }

    static __device__ float2 scale(const char * step, const int block) {
        const signed char * scales = (const signed char *)step + 192 + 2 * block;
        const float of_all = half_at(step + 208);
        return make_float2(of_all * scales[0], of_all * scales[1]);
    }
};

// what `call` makes of the type as a constant
template <typename CALL>
auto with_thin_type(const ggml_type type, const CALL & call) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            return call(std::integral_constant<ggml_type, GGML_TYPE_Q4_0>());
        case GGML_TYPE_Q8_0:
            return call(std::integral_constant<ggml_type, GGML_TYPE_Q8_0>());
        case GGML_TYPE_Q4_K:
            return call(std::integral_constant<ggml_type, GGML_TYPE_Q4_K>());
        default:
            return call(std::integral_constant<ggml_type, GGML_TYPE_Q6_K>());
    }
}

}  // namespace kvtuner::cuda
