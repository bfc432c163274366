// One fault a kernel, for the tests of the emulator itself.
#include <metal_stdlib>

using namespace metal;

constant int FC_size [[function_constant(0)]];

kernel void kernel_sum(
        device const float * values,
        device       float * sums,
        threadgroup  float * shared [[threadgroup(0)]],
        uint   group[[threadgroup_position_in_grid]],
        ushort index[[thread_index_in_threadgroup]],
        ushort lane[[thread_index_in_simdgroup]],
        ushort simdgroup[[simdgroup_index_in_threadgroup]],
        ushort simdgroups[[simdgroups_per_threadgroup]]) {
    const float sum = simd_sum(values[group*FC_size + index]);
    if (lane == 0) {
        shared[simdgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index == 0) {
        float total = 0.0f;
        for (ushort i = 0; i < simdgroups; ++i) {
            total += shared[i];
        }
        sums[group] = total;
    }
}

kernel void kernel_write_past_the_end(
        device       float * values,
        threadgroup  float * shared [[threadgroup(0)]],
        ushort index[[thread_index_in_threadgroup]]) {
    shared[index + 1] = 1.0f;
    values[index] = 0.0f;
}

kernel void kernel_read_past_the_end(
        device const float * values,
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    result[index] = values[index + 1];
}

kernel void kernel_unwritten(
        device       float * result,
        threadgroup  float * shared [[threadgroup(0)]],
        ushort index[[thread_index_in_threadgroup]]) {
    result[index] = shared[index];
}

kernel void kernel_barrier_for_some(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    if (index == 3) {
        return;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    result[index] = 0.0f;
}

kernel void kernel_sum_for_some(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    float sum = 1.0f;
    if (index < 16) {
        sum = simd_sum(sum);
    }
    result[index] = simd_max(sum);
}

kernel void kernel_neighbour(
        device       float * result,
        threadgroup  float * shared [[threadgroup(0)]],
        ushort index[[thread_index_in_threadgroup]]) {
    shared[index] = (float) index;
    const float largest = simd_max((float) index);
    result[index] = shared[(index + 1)%32] + largest;
}

kernel void kernel_same_place(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    result[0] = (float) index;
}

kernel void kernel_past_a_shuffle(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    result[index] = simd_shuffle_down(1.0f, 4);
}

kernel void kernel_declared(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    threadgroup float shared[32];
    shared[index] = (float) index;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    result[index] = shared[31 - index];
}

kernel void kernel_sum_and_end(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    result[index] = simd_sum(1.0f);
}

kernel void kernel_shuffle_from_nobody(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    result[index] = simd_shuffle(1.0f, index + 1);
}

kernel void kernel_write_an_input(
        device       float * values,
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    values[index] = 1.0f;
    result[index] = 1.0f;
}

kernel void kernel_overflow(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    result[index] = (float) (0x7ffffff0 + index);
}

kernel void kernel_misaligned(
        device       float * result,
        ushort index[[thread_index_in_threadgroup]]) {
    device char * bytes = (device char *) result;
    *(device short *) (bytes + 2*index + index%2) = 1;
}
