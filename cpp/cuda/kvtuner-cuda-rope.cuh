// Rotary position embedding of heads as they are read, with the formulas of upstream's kernels (rope.cu).
#pragma once

#include <cstdint>

namespace kvtuner::cuda {

// RoPE of pairs next to each other, or half of the turned values apart
struct rope_args {
    const int32_t * positions;  // of each row; null: no RoPE
    const float * factors;      // of each pair, by which frequencies are divided, or null
    float theta_scale, freq_scale, ext_factor, attn_factor;
    float corr_low, corr_high;
    int n_turned;  // values of a head from its first on
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

// value i of a head whose values these are
inline __device__ float rope_value(const rope_args & a, const int32_t position, const float * head, const int i) {
    if (i >= a.n_turned) {
        return head[i];
    }
    const int half = a.n_turned / 2, pair = a.is_apart ? i % half : i / 2;
    const bool is_second = a.is_apart ? i >= half : i % 2 != 0;
    const float first = head[a.is_apart ? pair : 2 * pair], second = head[a.is_apart ? pair + half : 2 * pair + 1];
    const float2 turn = rope_turn(a, position, pair);
    return is_second ? fmaf(first, turn.y, second * turn.x) : fmaf(first, turn.x, -(second * turn.y));
}

}  // namespace kvtuner::cuda
