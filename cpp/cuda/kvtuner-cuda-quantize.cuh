// How 16 threads find a block of q2_nl or q3_nl together: bit for bit the block of kvtuner-quantize.h. Thread i has the
// values i, i + 16, i + 32 and i + 48: one lane of its sums, and the byte i of its low bits.
#pragma once

#include "kvtuner-cuda-exact.cuh"
#include "kvtuner-quantize.h"

namespace kvtuner::cuda {

constexpr int TOGETHER = 16;                  // threads
constexpr int EACH = QK_NL / TOGETHER;        // values of a thread
constexpr unsigned ALL_THREADS = 0xFFFFFFFF;  // of the warp: none may be missing

// of a block, in every thread: a + b is b + a, so that all have the bits of the order of additions in sum_of_block
inline __device__ float sum_together(const float (&x)[EACH]) {
    float sum = exact::add(exact::add(exact::add(x[0], x[1]), x[2]), x[3]);
#pragma unroll
    for (int n = TOGETHER / 2; n > 0; n /= 2) {
        sum = exact::add(sum, __shfl_xor_sync(ALL_THREADS, sum, n, TOGETHER));
    }
    return sum;
}

inline __device__ float sum_of_products_together(const float (&x)[EACH], const float (&y)[EACH]) {
    float products[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        products[k] = exact::mul(x[k], y[k]);
    }
    return sum_together(products);
}

// The steps that a magnitude has reached, of I and those behind it: the rank of its level
template <typename BLOCK, int I = 0>
__device__ int rank_of(const float size, const float scale) {
    if constexpr (I == low_bit<BLOCK>::N - 1) {
        return 0;
    } else {
        constexpr float step = low_bit<BLOCK>::STEPS[I];
        return exact::is_at_least(size, exact::mul(step, scale)) + rank_of<BLOCK, I + 1>(size, scale);
    }
}

template <typename BLOCK, int I = 0>
__device__ float magnitude_of(const int rank) {
    constexpr int N = low_bit<BLOCK>::N;
    constexpr float magnitude = low_bit<BLOCK>::LEVELS[N + I];
    if constexpr (I == N - 1) {
        return magnitude;
    } else {
        return rank == I ? magnitude : magnitude_of<BLOCK, I + 1>(rank);
    }
}

// the levels next to values of magnitudes x
template <typename BLOCK>
__device__ void find_levels(const float (&x)[EACH], const float scale, int (&rank)[EACH], float (&m)[EACH]) {
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        rank[k] = rank_of<BLOCK>(x[k], scale);
        m[k] = magnitude_of<BLOCK>(rank[k]);
    }
}

// as scale_of
template <side SIDE>
__device__ float scale_together(const float squares, const float (&x)[EACH], const float (&m)[EACH]) {
    const float product = sum_of_products_together(x, m);
    const float fitted = exact::div(product, sum_of_products_together(m, m));
    const float unbiased = exact::div(squares, product);
    if (!(unbiased <= FLT_MAX)) {
        return fitted;
    }
    return SIDE == side::V ? unbiased : exact::mul(0.5f, exact::add(fitted, unbiased));
}

inline __device__ void put_low_bits(const int (&codes)[EACH], const int thread, unsigned char * qs) {
    qs[thread] = (codes[0] & 3) | (codes[1] & 3) << 2 | (codes[2] & 3) << 4 | (codes[3] & 3) << 6;
}

inline __device__ void put_codes(const int (&codes)[EACH], const int thread, const bool is_stored, block_q2_nl * y) {
    if (is_stored) {
        put_low_bits(codes, thread, y->qs);
    }
}

// the high bits of values i, i + 8, i + 16, ... are one byte: every other one of them is thread i + 8's
inline __device__ void put_codes(const int (&codes)[EACH], const int thread, const bool is_stored, block_q3_nl * y) {
    const int bits = codes[0] >> 2 | codes[1] >> 2 << 2 | codes[2] >> 2 << 4 | codes[3] >> 2 << 6;
    const int others = __shfl_xor_sync(ALL_THREADS, bits, TOGETHER / 2, TOGETHER);
    if (is_stored) {
        put_low_bits(codes, thread, y->qs);
    }
    if (is_stored && thread < QK_NL / 8) {
        y->qh[thread] = bits | others << 1;
    }
}

// Stores the block y of these values if is_stored. All threads of a warp call this, two blocks at once, those too whose
// block is none.
template <side SIDE, typename BLOCK>
__device__ void quantize_together(const float (&x)[EACH], const int thread, const bool is_stored, BLOCK * y) {
    constexpr int N = low_bit<BLOCK>::N;
    constexpr float start = low_bit<BLOCK>::START;
    float size[EACH], m[EACH];
    int rank[EACH], codes[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        size[k] = exact::size(x[k]);
    }
    const float squares = sum_of_products_together(x, x);
    float scale = exact::mul(exact::root(exact::div(squares, QK_NL)), start);
#pragma unroll
    for (int i = 0; i < KVTUNER_NL_ROUNDS; ++i) {
        find_levels<BLOCK>(size, scale, rank, m);
        scale = exact::div(sum_of_products_together(size, m), sum_of_products_together(m, m));
    }
    find_levels<BLOCK>(size, scale, rank, m);
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        codes[k] = exact::is_negative(x[k]) ? N - 1 - rank[k] : N + rank[k];
    }
    const float d = scale_together<SIDE>(squares, size, m);
    if (is_stored && thread == 0) {
        y->d = __float2half_rn(d);
    }
    put_codes(codes, thread, is_stored, y);
}

}  // namespace kvtuner::cuda
