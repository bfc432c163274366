#include "kvtuner-lowbit-block.h"

#include "ggml-impl.h"

#include <assert.h>

void quantize_row_q2_nl_ref(const float * x, block_q2_nl * y, int64_t k) {
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const ggml_half d = GGML_FP32_TO_FP16(kvtuner_q2_nl_scale(x + b * QK_NL));
        kvtuner_q2_nl_block(x + b * QK_NL, d, GGML_FP16_TO_FP32(d), y + b);
    }
}

void quantize_row_q3_nl_ref(const float * x, block_q3_nl * y, int64_t k) {
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const ggml_half d = GGML_FP32_TO_FP16(kvtuner_q3_nl_scale(x + b * QK_NL));
        kvtuner_q3_nl_block(x + b * QK_NL, d, GGML_FP16_TO_FP32(d), y + b);
    }
}

void dequantize_row_q2_nl(const block_q2_nl * x, float * y, int64_t k) {
    static const float levels[4] = { KVTUNER_Q2_NL_LEVELS };
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const float d = GGML_FP16_TO_FP32(x[b].d);
        for (int j = 0; j < QK_NL; ++j) {
            y[b * QK_NL + j] = d * levels[x[b].qs[j % 16] >> 2 * (j / 16) & 3];
        }
    }
}

void dequantize_row_q3_nl(const block_q3_nl * x, float * y, int64_t k) {
    static const float levels[8] = { KVTUNER_Q3_NL_LEVELS };
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const float d = GGML_FP16_TO_FP32(x[b].d);
        for (int j = 0; j < QK_NL; ++j) {
            const int low = x[b].qs[j % 16] >> 2 * (j / 16) & 3;
            const int high = x[b].qh[j % 8] >> j / 8 & 1;
            y[b * QK_NL + j] = d * levels[low | high << 2];
        }
    }
}

bool kvtuner_is_cache_only(enum ggml_type type) {
    return type == GGML_TYPE_Q2_NL || type == GGML_TYPE_Q3_NL;
}

bool kvtuner_has_cache_only_type(const struct ggml_tensor * node) {
    bool found = kvtuner_is_cache_only(node->type);
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        found = found || (node->src[i] && kvtuner_is_cache_only(node->src[i]->type));
    }
    return found;
}
