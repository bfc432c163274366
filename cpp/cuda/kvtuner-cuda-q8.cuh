// Values as q8_1, which products of quantized weights and vectors read.
#pragma once

#include "kvtuner-cuda-rotate.cuh"

namespace kvtuner::cuda {

constexpr int Q8_VALUES = 32, Q8_BYTES = 36;  // of a block: scale and sum as halves, codes

// By all lanes of a warp, of which eight next to each other have a block, four values each: value `at` of all and the
// next three. What is stored, and in which order values are added, is as in upstream's quantize_q8_1.
inline __device__ void put_q8(const float4 v, char * blocks, const int at, const bool is_stored) {
    float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    float4 sums = v;
#pragma unroll
    for (int lanes = Q8_VALUES / 8; lanes > 0; lanes /= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, lanes));
        sums = plus(sums, 1, exchanged(sums, lanes));
    }
    const float sum = (sums.x + sums.z) + (sums.y + sums.w), scale = most / 127;
    const auto code = [=](const float x) { return (int)(most == 0 ? 0 : roundf(x / scale)) & 0xff; };
    char * block = blocks + at / Q8_VALUES * Q8_BYTES;
    if (is_stored) {
        *(int *)(block + 4 + at % Q8_VALUES) = code(v.x) | code(v.y) << 8 | code(v.z) << 16 | code(v.w) << 24;
    }
    if (is_stored && at % Q8_VALUES == 0) {
        *(half2 *)block = __floats2half2_rn(scale, sum);
    }
}

}  // namespace kvtuner::cuda
