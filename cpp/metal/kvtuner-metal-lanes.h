// How lanes share out the rows and columns of attention, and a row that they rotate.
#pragma once

#include "kvtuner-metal-quads.h"

#define DK KVTUNER_DK
#define DV KVTUNER_DV
#define COLUMNS KVTUNER_COLUMNS
#define LANES (DK % 128 == 64 ? 16 : 32)
#define QUADS_OF(n) (((n) / 4 + LANES - 1) / LANES)  // of four values, that a lane has of a row
#define K_QUADS QUADS_OF(DK)
#define V_QUADS QUADS_OF(DV)
#define TOKENS (N_SIMDWIDTH / COLUMNS)    // of a step
#define SUMS 8                            // of a token and a column, that lanes add up at once
#define CHUNKS (LANES / SUMS)             // of a step
#define TOKENS_OF_CHUNK (SUMS / COLUMNS)  // that a lane has

constant short FC_kvtuner_kind_k [[function_constant(FC_KVTUNER_ATTENTION + 0)]];
constant short FC_kvtuner_kind_v [[function_constant(FC_KVTUNER_ATTENTION + 1)]];
constant short FC_kvtuner_exact_kind_k [[function_constant(FC_KVTUNER_ATTENTION + 2)]];
constant short FC_kvtuner_exact_kind_v [[function_constant(FC_KVTUNER_ATTENTION + 3)]];
constant bool FC_kvtuner_has_mask [[function_constant(FC_KVTUNER_ATTENTION + 4)]];
constant bool FC_kvtuner_has_sinks [[function_constant(FC_KVTUNER_ATTENTION + 5)]];
constant bool FC_kvtuner_has_exact [[function_constant(FC_KVTUNER_ATTENTION + 6)]];
constant bool FC_kvtuner_has_centers [[function_constant(FC_KVTUNER_ATTENTION + 7)]];
constant short FC_kvtuner_parts [[function_constant(FC_KVTUNER_ATTENTION + 8)]];
constant short FC_kvtuner_simdgroups [[function_constant(FC_KVTUNER_ATTENTION + 9)]];

// which of 32 lanes it is, which of those that have its tokens, and the first of them
struct kvtuner_lane {
    short all;
    short mine;
    short first;
};

// mine + other as upstream's kernel_fwht, and from some length on kernel_fwht_tg, round it
template <typename T>
static inline T kvtuner_sum(T mine, T other, int n) {
    return n < GGML_METAL_FWHT_TG_MIN_N ? other - mine + 2.0f * mine : other + mine;
}

// Walsh-Hadamard transform, orthonormal, of n values at a time of the row that lanes have, a power of two from 4 on; 0:
// none.
template <short QUADS>
static inline void kvtuner_rotate(thread float4 * x, int n, kvtuner_lane lane) {
    if (n == 0) {
        return;
    }
    const float scale = 1.0f / sqrt((float)n);
    FOR_UNROLL(short i = 0; i < QUADS; ++i) {
        const float4 v = x[i] * scale;
        const float a = kvtuner_sum(v[0], v[1], n), b = v[0] - v[1];
        const float c = kvtuner_sum(v[2], v[3], n), d = v[2] - v[3];
        x[i] = float4(kvtuner_sum(a, c, n), kvtuner_sum(b, d, n), a - c, b - d);
    }
    for (short step = 1; step < LANES && 4 * step < n; step *= 2) {
        const int as = 4 * step < N_SIMDWIDTH ? n : GGML_METAL_FWHT_TG_MIN_N;
        FOR_UNROLL(short i = 0; i < QUADS; ++i) {
            const float4 other = simd_shuffle_xor(x[i], (ushort)step);
            x[i] = (lane.all & step) != 0 ? other - x[i] : kvtuner_sum(x[i], other, as);
        }
    }
    FOR_UNROLL(short step = 1; step < QUADS; step *= 2) {
        FOR_UNROLL(short i = 0; i + step < QUADS; ++i) {
            if ((i & step) == 0 && 4 * LANES * step < n) {
                const float4 low = x[i];
                const float4 high = x[i + step];
                x[i] = low + high;
                x[i + step] = low - high;
            }
        }
    }
}
