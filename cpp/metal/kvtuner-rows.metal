// Rows of blocks as floats, and copies between blocks and floats. The host defines KVTUNER_BLOCK, its number of values
// KVTUNER_LENGTH, and KVTUNER_FLOAT, what a value becomes.
#include "kvtuner-metal-args.h"
#include "kvtuner-metal-store.h"

// where value n of a tensor is, in bytes from its first one; of blocks the block that it is in
inline uint64_t kvtuner_place(int64_t n, constant int64_t * ne, constant uint64_t * stride, int length) {
    const int64_t i0 = n % ne[0];
    const int64_t i1 = n / ne[0] % ne[1];
    const int64_t i2 = n / (ne[0] * ne[1]) % ne[2];
    const int64_t i3 = n / (ne[0] * ne[1] * ne[2]);
    return i0 / length * stride[0] + i1 * stride[1] + i2 * stride[2] + i3 * stride[3];
}

kernel void kvtuner_get_rows(
        constant kvtuner_metal_get_rows_args & args,
        device const char * from,
        device const char * indices,
        device char * to,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort tiitg[[thread_index_in_threadgroup]],
        ushort3 ntg[[threads_per_threadgroup]]) {
    const int i1 = tgpig.x;
    const int i2 = tgpig.y;
    const int i3 = tgpig.z;
    const int row = *(device const int32_t *)(indices + i1 * args.index_stride[0] + i2 * args.index_stride[1] +
                                              i3 * args.index_stride[2]);
    device const KVTUNER_BLOCK * blocks =
            (device const KVTUNER_BLOCK *)(from + row * args.from_stride[0] + i2 * args.from_stride[1] +
                                           i3 * args.from_stride[2]);
    device KVTUNER_FLOAT * values =
            (device KVTUNER_FLOAT *)(to + i1 * args.to_stride[0] + i2 * args.to_stride[1] + i3 * args.to_stride[2]);
    for (int i = tiitg; i < args.n; i += ntg.x) {
        values[i] = (KVTUNER_FLOAT)kvtuner_value(blocks[i / KVTUNER_LENGTH], i % KVTUNER_LENGTH);
    }
}

kernel void kvtuner_copy_from(
        constant kvtuner_metal_copy_args & args,
        device const char * from,
        device char * to,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort tiitg[[thread_index_in_threadgroup]],
        ushort3 ntg[[threads_per_threadgroup]]) {
    const int64_t n = (int64_t)tgpig.x * ntg.x + tiitg;
    if (n >= args.n) {
        return;
    }
    device const KVTUNER_BLOCK & block =
            *(device const KVTUNER_BLOCK *)(from + kvtuner_place(n, args.from_ne, args.from_stride, KVTUNER_LENGTH));
    *(device KVTUNER_FLOAT *)(to + kvtuner_place(n, args.to_ne, args.to_stride, 1)) =
            (KVTUNER_FLOAT)kvtuner_value(block, n % args.from_ne[0] % KVTUNER_LENGTH);
}

// a simdgroup takes a block, which it writes as one of keys
kernel void kvtuner_copy_to(
        constant kvtuner_metal_copy_args & args,
        device const char * from,
        device char * to,
        uint3 tgpig[[threadgroup_position_in_grid]],
        ushort lane[[thread_index_in_simdgroup]],
        ushort sgitg[[simdgroup_index_in_threadgroup]],
        ushort nsg[[simdgroups_per_threadgroup]]) {
    const int64_t first = ((int64_t)tgpig.x * nsg + sgitg) * KVTUNER_LENGTH;
    if (first >= args.n) {
        return;
    }
    float x[KVTUNER_LENGTH / 32];
    FOR_UNROLL (int i = 0; i < KVTUNER_LENGTH / 32; ++i) {
        x[i] = *(device const KVTUNER_FLOAT *)(from + kvtuner_place(first + 32 * i + lane, args.from_ne,
                                                                    args.from_stride, 1));
    }
    device KVTUNER_BLOCK * block =
            (device KVTUNER_BLOCK *)(to + kvtuner_place(first, args.to_ne, args.to_stride, KVTUNER_LENGTH));
    kvtuner_store(x, KVTUNER_LENGTH / 32, false, lane, block, 0);
}
