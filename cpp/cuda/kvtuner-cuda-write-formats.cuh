// How the kernel of the write converts and stores a row in each format.
#pragma once

#include "ggml-cuda/common.cuh"
#include "ggml-cuda/convert.cuh"
#include "ggml-cuda/cpy-utils.cuh"
#include "kvtuner-cuda-write-rows.cuh"

namespace kvtuner::cuda {

constexpr int PLAIN = 32;  // values that a warp takes where nothing is rotated and the format does not ask for more

// how a piece of N values is converted and stored
template <typename block, int length, void (*quantize)(const float *, block *)>
struct quantized {
    static constexpr int unit = PLAIN;

    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float * shared, const int lane, char * row, const int at) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            shared[i * WARP + lane] = x[i];
        }
        __syncwarp();
        for (int b = lane; b < N / length; b += WARP) {
            quantize(shared + b * length, (block *)row + at / length + b);
        }
    }
};

// value `lane` of a block of as many as a warp has lanes, by all of them: as upstream's functions, in their words
inline __device__ void put_value(const float x, const int lane, block_q8_0 & y) {
    const float amax = warp_reduce_max(fabsf(x));
    const float d = amax / ((1 << 7) - 1);
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = d;
    }
    y.qs[lane] = roundf(x * id);
}

inline __device__ void put_value(const float x, const int lane, block_q4_0 & y) {
    const float amax = warp_reduce_max(fabsf(x));
    const unsigned first = __ffs(__ballot_sync(ALL_THREADS, fabsf(x) == amax)) - 1;
    const float of_first = __shfl_sync(ALL_THREADS, x, first);
    const float vmax = amax > 0 ? of_first : 0.0f;
    const float d = vmax / -8;
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = d;
    }
    const int code = min(15, (int8_t)(x * id + 8.5f));
    const int other = __shfl_xor_sync(ALL_THREADS, code, QK4_0 / 2);
    if (lane < QK4_0 / 2) {
        y.qs[lane] = (uint8_t)code | (uint8_t)other << 4;
    }
}

template <typename block>
struct by_all_lanes {
    static constexpr int unit = PLAIN;

    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float *, const int lane, char * row, const int at) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            put_value(x[i], lane, ((block *)row)[at / WARP + i]);
        }
    }
};

// the format of upstream's struct block_<name>
template <typename block, int length, void (*quantize)(const float *, block *)>
struct format_of {
    using type = quantized<block, length, quantize>;
};

template <void (*quantize)(const float *, block_q8_0 *)>
struct format_of<block_q8_0, QK8_0, quantize> {
    using type = by_all_lanes<block_q8_0>;
};

template <void (*quantize)(const float *, block_q4_0 *)>
struct format_of<block_q4_0, QK4_0, quantize> {
    using type = by_all_lanes<block_q4_0>;
};

template <typename T>
struct plain {
    static constexpr int unit = PLAIN;

    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float *, const int lane, char * row, const int at) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            ((T *)row)[at + i * WARP + lane] = ggml_cuda_cast<T>(x[i]);
        }
    }
};

using f32 = float;
using f16 = half;
using bf16 = nv_bfloat16;

struct all_formats {
    template <int N, typename format>
    static __device__ void store_as(const float (&x)[N / WARP], float * shared, const int lane, char * row,
                                    const int at) {
        if constexpr (N % format::unit == 0) {
            format::template store<N>(x, shared, lane, row, at);
        }
    }

    template <int N>
    static __device__ void store(const write_args & args, const float (&x)[N / WARP], float * shared, const int lane,
                                 char * row, const int at) {
        switch (args.type) {
#define KVTUNER_NUMBER(TYPE, name) \
    case GGML_TYPE_##TYPE:         \
        return store_as<N, plain<name>>(x, shared, lane, row, at);
#define KVTUNER_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:              \
        return store_as<N, format_of<block_##name, size, quantize_f32_##name##_block>::type>(x, shared, lane, row, at);
#define KVTUNER_OWN_BLOCK(TYPE, name, size)                                                               \
    case GGML_TYPE_##TYPE:                                                                                \
        return args.is_of_values ? store_as<N, low_bits<block_##name, side::V>>(x, shared, lane, row, at) \
                                 : store_as<N, low_bits<block_##name, side::K>>(x, shared, lane, row, at);
#include "kvtuner-formats.def"
        }
    }

    template <int N>
    static __device__ void store_exact(const write_args & args, const float (&x)[N / WARP], const int lane, char * row,
                                       const int at) {
        if (args.exact_type == GGML_TYPE_F16) {
            plain<f16>::store<N>(x, nullptr, lane, row, at);
        } else {
            by_all_lanes<block_q8_0>::store<N>(x, nullptr, lane, row, at);
        }
    }
};

}  // namespace kvtuner::cuda
