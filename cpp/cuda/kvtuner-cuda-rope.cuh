// Rotary position embedding of heads as they are read, with the formulas of upstream's kernels (rope.cu).
#pragma once

#include <cstdint>

namespace kvtuner::cuda {

// RoPE of pairs next to each other, or half of the turned values apart
struct rope_args {
    const int32_t * positions;  // of each row, or null
    const float * factors;      // of each pair, by which frequencies are divided, or null
    float theta_scale, freq_scale, ext_factor, attn_factor;
    float corr_low, corr_high;
    int n_turned;  // values of a head from its first on; 0: no RoPE
    bool is_apart;
};

// cosine and sine of a pair of values of a row, with YaRN's interpolation and magnitude
inline __device__ float2 rope_turn(const rope_args & a, const int32_t position, const int pair) {
    const float extrapolated = position * powf(a.theta_scale, pair) / (a.factors ? a.factors[pair] : 1.0f);
    const float interpolated = a.freq_scale * extrapolated;
    float theta = interpolated, magnitude = a.attn_factor;
    if (a.ext_factor != 0.0f) {
        const float along = (pair - a.corr_low) / fmaxf(0.001f, a.corr_high - a.corr_low);
        const float mix = (1.0f - fminf(1.0f, fmaxf(0.0f, along))) * a.ext_factor;
        theta = interpolated * (1 - mix) + extrapolated * mix;
        magnitude *= 1.0f + 0.1f * logf(1.0f / a.freq_scale);
    }
    return make_float2(cosf(theta) * magnitude, sinf(theta) * magnitude);
}

// the pair that value i of a head, one of those that are turned, belongs to
struct rope_pair {
    int index, first, second;  // its values
    bool is_second;

    __device__ rope_pair(const rope_args & a, const int i) {
        const int half = a.n_turned / 2;
        index = a.is_apart ? i % half : i / 2;
        first = a.is_apart ? index : 2 * index;
        second = a.is_apart ? index + half : 2 * index + 1;
        is_second = i == second;
    }

    __device__ float turned(const float * head, const float2 turn) const {
        const float x = head[first], y = head[second];
        return is_second ? fmaf(x, turn.y, y * turn.x) : fmaf(x, turn.x, -(y * turn.y));
    }
};

}  // namespace kvtuner::cuda
