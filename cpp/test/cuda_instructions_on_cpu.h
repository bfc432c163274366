// The instructions of kvtuner-cuda-instructions.cuh on the CPU.
#pragma once

#include "cuda_on_cpu.h"
#include "kvtuner-cuda-halves.cuh"

namespace kvtuner::cuda {

inline float power_of_two(const float x) {
    return exp2f(x);
}

inline float low_half(const pair x) {
    return half{ (ggml_fp16_t)(x & 0xffff) };
}

inline float high_half(const pair x) {
    return half{ (ggml_fp16_t)(x >> 16) };
}

// Sixteen products of a row of A and a column of B, which four lanes have each: of the pairs a and a + 2 of A's lanes
// from `row` on, and both of B's from `column` on.
inline float sum_of_products(const cuda_on_cpu::words * all, const int row, const int a, const int column) {
    float sum = 0;
    for (int k = 0; k < 2; ++k) {
        for (int t = 0; t < 4; ++t) {
            const pair x = all[row + t].at[a + 2 * k], y = all[column + t].at[4 + k];
            sum += low_half(x) * low_half(y) + high_half(x) * high_half(y);
        }
    }
    return sum;
}

inline void add_product(float (&c)[4], const pair a0, const pair a1, const pair a2, const pair a3, const pair b0,
                        const pair b1) {
    const cuda_on_cpu::words * all =
            cuda_on_cpu::exchange(cuda_on_cpu::together::PRODUCT, { { a0, a1, a2, a3, b0, b1 } });
    const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        c[i] += sum_of_products(all, 4 * g, i / 2, 4 * (2 * t + i % 2));
    }
}

inline int signed_byte(const uint32_t word, const int i) {
    return (int8_t)(word >> 8 * i & 0xff);
}

// the same of 32 codes, four in a word
inline int sum_of_codes_products(const cuda_on_cpu::words * all, const int row, const int a, const int column) {
    int sum = 0;
    for (int k = 0; k < 2; ++k) {
        for (int t = 0; t < 4; ++t) {
            for (int i = 0; i < 4; ++i) {
                sum += signed_byte(all[row + t].at[a + 2 * k], i) * signed_byte(all[column + t].at[4 + k], i);
            }
        }
    }
    return sum;
}

inline void add_codes_product(int (&c)[4], const uint32_t (&a)[4], const uint32_t b0, const uint32_t b1) {
    const cuda_on_cpu::words * all =
            cuda_on_cpu::exchange(cuda_on_cpu::together::PRODUCT, { { a[0], a[1], a[2], a[3], b0, b1 } });
    const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        c[i] += sum_of_codes_products(all, 4 * g, i / 2, 4 * (2 * t + i % 2));
    }
}

inline pair transposed(const pair x) {
    const cuda_on_cpu::words * all = cuda_on_cpu::exchange(cuda_on_cpu::together::TRANSPOSE, { { x } });
    const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
    const auto at = [&](const int row, const int column) {
        return all[4 * row + column / 2].at[0] >> 16 * (column % 2) & 0xffff;
    };
    return at(2 * t, g) | at(2 * t + 1, g) << 16;
}

// the half in a row of the matrix whose rows these lanes name
inline uint32_t half_of_matrix(const cuda_on_cpu::words * all, const int matrix, const int row, const int column) {
    const uint32_t address = all[8 * matrix + row].at[0];
    if (address % 16 != 0) {
        cuda_on_cpu::fail("a row of a matrix that is not aligned");
    }
    return ((const uint16_t *)cuda_on_cpu::shared_bytes_at(address, 16))[column];
}

template <bool IS_TRANSPOSED>
void load_any_matrices(pair (&r)[4], const uint32_t row) {
    const cuda_on_cpu::words * all = cuda_on_cpu::exchange(cuda_on_cpu::together::LOAD, { { row } });
    const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        r[i] = 0;
        for (int j = 0; j < 2; ++j) {
            r[i] |= (IS_TRANSPOSED ? half_of_matrix(all, i, 2 * t + j, g) : half_of_matrix(all, i, g, 2 * t + j))
                    << 16 * j;
        }
    }
}

inline void load_matrices(pair (&r)[4], const uint32_t row) {
    load_any_matrices<false>(r, row);
}

inline void load_transposed(pair (&r)[4], const uint32_t row) {
    load_any_matrices<true>(r, row);
}

inline void prefetch(const void *) {
}

template <int N>
void copy_later(const uint32_t to, const void * from) {
    static_assert(N == 4 || N == 8 || N == 16);
    cuda_on_cpu::copy_later(to, from, N);
}

inline void wait_for_copies() {
    cuda_on_cpu::wait_for_copies();
}

inline void wait_for_warps(const int n) {
    cuda_on_cpu::wait_at_barrier(1, n * cuda_on_cpu::WARP);
}

inline void wait_anywhere(const int n) {
    cuda_on_cpu::wait_at_barrier(1, n * cuda_on_cpu::WARP);
}

inline void wait_for_team(const int team, const int n) {
    cuda_on_cpu::wait_at_barrier(2 + team, n * cuda_on_cpu::WARP);
}

template <int N>
void wait_for_one_of_two(const int team) {
    wait_for_team(team, N);
}

inline void make_barrier(const uint32_t barrier, const int n) {
    cuda_on_cpu::make_phases(barrier, n);
}

inline void arrive_when_copied(const uint32_t barrier) {
    cuda_on_cpu::arrive_when_copied(barrier);
}

inline void announce_bytes(const uint32_t barrier, const int n_bytes) {
    cuda_on_cpu::announce_bytes(barrier, n_bytes);
}

inline void copy_row_later(const uint32_t to, const void * from, const int n_bytes, const uint32_t barrier) {
    cuda_on_cpu::copy_for_phase(to, from, n_bytes, barrier);
}

inline void arrive(const uint32_t barrier) {
    cuda_on_cpu::arrive(barrier);
}

inline void wait_for_phase(const uint32_t barrier, const int phase) {
    cuda_on_cpu::wait_for_phase(barrier, phase);
}

inline void end_writes() {
}

inline bool is_first_lane() {
    return cuda_on_cpu::lane() == 0;
}

inline uint32_t masked_or(const uint32_t x, const uint32_t mask, const uint32_t or_with) {
    return (x & mask) | or_with;
}

}  // namespace kvtuner::cuda
