#include "kvtuner-lowbit-block.h"
#include "kvtuner-lowbit-dot.h"

#include "ggml-impl.h"
#include "ggml-cpu/simd-mappings.h"

#include <assert.h>

void quantize_row_q2_nl(const float * x, void * vy, int64_t k) {
    block_q2_nl * y = vy;
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const ggml_half d = GGML_CPU_FP32_TO_FP16(kvtuner_q2_nl_scale(x + b * QK_NL));
        kvtuner_q2_nl_block(x + b * QK_NL, d, GGML_CPU_FP16_TO_FP32(d), y + b);
    }
}

void quantize_row_q3_nl(const float * x, void * vy, int64_t k) {
    block_q3_nl * y = vy;
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const ggml_half d = GGML_CPU_FP32_TO_FP16(kvtuner_q3_nl_scale(x + b * QK_NL));
        kvtuner_q3_nl_block(x + b * QK_NL, d, GGML_CPU_FP16_TO_FP32(d), y + b);
    }
}

void ggml_vec_dot_q2_nl_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by,
                             int nrc) {
    assert(n % QK_NL == 0 && nrc == 1);
    const block_q2_nl * x = vx;
    const block_q8_0 * y = vy;
    kvtuner_dot_sum sum = kvtuner_dot_zero();
    for (int b = 0; b < n / QK_NL; ++b) {
        const float d = GGML_CPU_FP16_TO_FP32(x[b].d);
        sum = kvtuner_dot_add(sum, kvtuner_q2_nl_levels(x[b].qs), y + 2 * b, d * GGML_CPU_FP16_TO_FP32(y[2 * b].d),
                              d * GGML_CPU_FP16_TO_FP32(y[2 * b + 1].d));
    }
    *s = kvtuner_dot_total(sum);
    (void)bs, (void)bx, (void)by, (void)nrc;
}

void ggml_vec_dot_q3_nl_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by,
                             int nrc) {
    assert(n % QK_NL == 0 && nrc == 1);
    const block_q3_nl * x = vx;
    const block_q8_0 * y = vy;
    kvtuner_dot_sum sum = kvtuner_dot_zero();
    for (int b = 0; b < n / QK_NL; ++b) {
        const float d = GGML_CPU_FP16_TO_FP32(x[b].d);
        sum = kvtuner_dot_add(sum, kvtuner_q3_nl_levels(x[b].qs, x[b].qh), y + 2 * b,
                              d * GGML_CPU_FP16_TO_FP32(y[2 * b].d), d * GGML_CPU_FP16_TO_FP32(y[2 * b + 1].d));
    }
    *s = kvtuner_dot_total(sum);
    (void)bs, (void)bx, (void)by, (void)nrc;
}
