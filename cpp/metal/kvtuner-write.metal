// The write of keys and values: scale, rotate, center, convert and store. The host defines KVTUNER_TO, what a row of
// the cache consists of, KVTUNER_EXACT, what one beside it does, and KVTUNER_N, the values of a row that a simdgroup
// takes: whole blocks, and where rows are rotated those that are rotated together.
#include "kvtuner-metal-args.h"
#include "kvtuner-metal-store.h"

#define KVTUNER_EACH (KVTUNER_N / 32)  // values of a lane

// Walsh-Hadamard transform, value 32 i + lane in x[i], to the bit as upstream's kernel_fwht, or kernel_fwht_tg
inline void kvtuner_transform(thread float * x, ushort lane) {
    for (ushort h = 1; h < 32; h *= 2) {
        FOR_UNROLL (int i = 0; i < KVTUNER_EACH; ++i) {
            const float mine = x[i];
            const float other = simd_shuffle_xor(mine, h);
            const float sum = KVTUNER_N < GGML_METAL_FWHT_TG_MIN_N ? other - mine + 2 * mine : other + mine;
            x[i] = (lane & h) == 0 ? sum : other - mine;
        }
    }
    FOR_UNROLL (int step = 1; step < KVTUNER_EACH; step *= 2) {
        FOR_UNROLL (int i = 0; i < KVTUNER_EACH; ++i) {
            if ((i & step) == 0) {
                const float low = x[i];
                const float high = x[i + step];
                x[i] = low + high;
                x[i + step] = low - high;
            }
        }
    }
}

inline int64_t kvtuner_index(device const char * indices, bool is_wide) {
    return is_wide ? *(device const int64_t *)indices : (int64_t) * (device const int32_t *)indices;
}

kernel void kvtuner_write(
        constant kvtuner_metal_write_args & args,
        device const char * rows,
        device const char * indices,
        device char * cache,
        device const float * factors,
        device const char * centers,
        device const int32_t * blocks,
        device const int64_t * exact_indices,
        device char * exact,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort lane[[thread_index_in_simdgroup]],
        ushort sgitg[[simdgroup_index_in_threadgroup]],
        ushort nsg[[simdgroups_per_threadgroup]]) {
    const int piece = (int)tgpig.x * nsg + sgitg;
    const int row = piece / args.pieces_per_row;
    const int at = piece % args.pieces_per_row * KVTUNER_N;
    if (row >= args.n_rows) {
        return;
    }
    const int i2 = tgpig.y;
    const int i3 = tgpig.z;
    const int64_t cell = kvtuner_index(indices + row * args.index_stride[0] + i2 % args.n_index[0] * args.index_stride[1] +
                                               i3 % args.n_index[1] * args.index_stride[2],
                                       args.is_wide);
    device const float * from = (device const float *)(rows + row * args.row_stride[0] + i2 * args.row_stride[1] +
                                                       i3 * args.row_stride[2]) +
                                at;
    float x[KVTUNER_EACH];
    FOR_UNROLL (int i = 0; i < KVTUNER_EACH; ++i) {
        const float factor = args.has_factors ? factors[at + 32 * i + lane] : 1.0f;
        x[i] = from[32 * i + lane] * factor * args.scale;
    }
    if (args.is_rotated) {
        kvtuner_transform(x, lane);
    }
    if (args.has_center) {
        FOR_UNROLL (int i = 0; i < KVTUNER_EACH; ++i) {
            x[i] -= ((device const float *)centers)[at + 32 * i + lane];
        }
    }
    if (args.has_centers) {
        const int64_t row_length = (int64_t)args.pieces_per_row * KVTUNER_N;
        FOR_UNROLL (int i = 0; i < KVTUNER_EACH; ++i) {
            x[i] -= (float)((device const half *)centers)[blocks[row] * row_length + at + 32 * i + lane];
        }
    }
    if (args.has_exact) {
        device KVTUNER_EXACT * beside = (device KVTUNER_EXACT *)(exact + exact_indices[row] * args.exact_stride);
        kvtuner_store(x, KVTUNER_EACH, args.exact_is_of_values, lane, beside, at);
    }
    device KVTUNER_TO * to = (device KVTUNER_TO *)(cache + cell * args.cache_stride[0] + i2 * args.cache_stride[1] +
                                                   i3 * args.cache_stride[2]);
    kvtuner_store(x, KVTUNER_EACH, args.is_of_values, lane, to, at);
}
