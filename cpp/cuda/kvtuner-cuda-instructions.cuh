// Instructions of a warp that CUDA C++ has no name for: products of small matrices, copies that go on in the
// background. From compute capability 8.0 on.
#pragma once

#include "kvtuner-cuda-halves.cuh"

namespace kvtuner::cuda {

inline __device__ float power_of_two(const float x) {
#if KVTUNER_NVIDIA_ARCH > 0
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// c += A B with A of 16 x 16: rows g and g + 8, columns 2t, 2t + 1 and 8 more; B of 16 x 8: these as rows, column g.
// c of 16 x 8: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
inline __device__ void add_product(float (&c)[4], const pair a0, const pair a1, const pair a2, const pair a3,
                                   const pair b0, const pair b1) {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// The same with codes of 8 bits, four in a word: c += A B with A of 16 x 32, of which a has rows g and g + 8 of columns
// 4t to 4t + 3, and both of columns 16 more; B of 32 x 8: these as rows, column g.
inline __device__ void add_codes_product(int (&c)[4], const uint32_t (&a)[4], const uint32_t b0, const uint32_t b1) {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// of an 8 x 8 matrix: (g, 2t) and (g, 2t + 1) in, (2t, g) and (2t + 1, g) out
inline __device__ pair transposed(const pair x) {
    pair y = 0;
#if KVTUNER_NVIDIA_ARCH >= 750
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
#endif
    return y;
}

// Four 8 x 8 matrices of halves in shared memory, of which lanes 0 to 7, 8 to 15, ... name the rows: of each (g, 2t)
// and (g, 2t + 1), or where they are transposed (2t, g) and (2t + 1, g).
inline __device__ void load_matrices(pair (&r)[4], const uint32_t row) {
#if KVTUNER_NVIDIA_ARCH >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
#endif
}

inline __device__ void load_transposed(pair (&r)[4], const uint32_t row) {
#if KVTUNER_NVIDIA_ARCH >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
#endif
}

// the 128 bytes around it are read soon
inline __device__ void prefetch(const void * from) {
#if KVTUNER_NVIDIA_ARCH > 0
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

// into shared memory in the background, 4, 8 or 16 bytes
template <int N>
__device__ void copy_later(const uint32_t to, const void * from) {
#if KVTUNER_NVIDIA_ARCH >= 800
    if constexpr (N == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(N) : "memory");
    }
#endif
}

// until all that this thread copies later is there
inline __device__ void wait_for_copies() {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// all that attend: so many
inline __device__ void wait_for_warps(const int n) {
#if KVTUNER_NVIDIA_ARCH > 0
    asm volatile("bar.sync 1, %0;" ::"r"(n * 32) : "memory");
#endif
}

// the same, where warps wait at different places of the code
inline __device__ void wait_anywhere(const int n) {
#if KVTUNER_NVIDIA_ARCH > 0
    asm volatile("barrier.sync 1, %0;" ::"r"(n * 32) : "memory");
#endif
}

// all of a team: so many
inline __device__ void wait_for_team(const int team, const int n) {
#if KVTUNER_NVIDIA_ARCH > 0
    asm volatile("bar.sync %0, %1;" ::"r"(2 + team), "r"(n * 32) : "memory");
#endif
}

// The same of two teams: what the hardware keeps for a barrier whose number is not known leaves others less.
template <int N>
__device__ void wait_for_one_of_two(const int team) {
#if KVTUNER_NVIDIA_ARCH > 0
    if (team == 0) {
        asm volatile("bar.sync 2, %0;" ::"n"(N * 32) : "memory");
    } else {
        asm volatile("bar.sync 3, %0;" ::"n"(N * 32) : "memory");
    }
#endif
}

// A barrier in shared memory changes its phase when as many have arrived as it waits for, and all bytes that they have
// announced.
inline __device__ void make_barrier(const uint32_t barrier, const int n) {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(n) : "memory");
#endif
}

// this thread, when what it copies later is there
inline __device__ void arrive_when_copied(const uint32_t barrier) {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// Whole rows into shared memory in the background, by one thread: from compute capability 9.0 on.
inline __device__ void announce_bytes(const uint32_t barrier, const int n_bytes) {
#if KVTUNER_NVIDIA_ARCH >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
#endif
}

inline __device__ void copy_row_later(const uint32_t to, const void * from, const int n_bytes, const uint32_t barrier) {
#if KVTUNER_NVIDIA_ARCH >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(n_bytes), "r"(barrier)
                 : "memory");
#endif
}

inline __device__ void arrive(const uint32_t barrier) {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm volatile(
            "{\n"
            ".reg .b64 state;\n"
            "mbarrier.arrive.shared.b64 state, [%0];\n"
            "}\n" ::"r"(barrier)
            : "memory");
#endif
}

#if KVTUNER_NVIDIA_ARCH >= 900
#    define KVTUNER_IS_PHASE_OVER "mbarrier.try_wait.parity.shared.b64"
#else
#    define KVTUNER_IS_PHASE_OVER "mbarrier.test_wait.parity.shared.b64"
#endif

inline __device__ void wait_for_phase(const uint32_t barrier, const int phase) {
#if KVTUNER_NVIDIA_ARCH >= 800
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "again:\n" KVTUNER_IS_PHASE_OVER
            " p, [%0], %1;\n"
            "@!p bra again;\n"
            "}\n" ::"r"(barrier),
            "r"(phase)
            : "memory");
#endif
}

#undef KVTUNER_IS_PHASE_OVER

// what threads have written to shared memory comes before copies of rows to it
inline __device__ void end_writes() {
#if KVTUNER_NVIDIA_ARCH >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// one of the lanes, always the same
inline __device__ bool is_first_lane() {
#if KVTUNER_NVIDIA_ARCH >= 900
    uint32_t is_it;
    asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "elect.sync _|p, 0xffffffff;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(is_it));
    return is_it;
#else
    return threadIdx.x % 32 == 0;
#endif
}

// (x & mask) | or_with in one instruction
inline __device__ uint32_t masked_or(const uint32_t x, const uint32_t mask, const uint32_t or_with) {
#if KVTUNER_NVIDIA_ARCH > 0
    uint32_t y;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(y) : "r"(x), "r"(mask), "r"(or_with));
    return y;
#else
    return (x & mask) | or_with;
#endif
}

}  // namespace kvtuner::cuda
