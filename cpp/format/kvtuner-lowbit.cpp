#include "kvtuner-lowbit.h"

#include "kvtuner-quantize.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"
#include "ggml-impl.h"
#include "kvtuner-decode.h"

#include <cassert>

namespace {

struct halves {
    static ggml_half of(float x) {
        return GGML_FP32_TO_FP16(x);
    }

    static float to_float(ggml_half x) {
        return GGML_FP16_TO_FP32(x);
    }
};

template <typename BLOCK>
void quantize_values(const float * x, void * y, int64_t k) {
    kvtuner::quantize_row<kvtuner::side::V, halves>(x, (BLOCK *)y, k);
}

template <typename BLOCK>
void dequantize_row(const BLOCK * x, float * y, int64_t k) {
    assert(k % QK_NL == 0);
    for (int64_t b = 0; b < k / QK_NL; ++b) {
        const float d = halves::to_float(x[b].d);
        for (int j = 0; j < QK_NL; ++j) {
            y[b * QK_NL + j] = d * (float)kvtuner_level(x[b], j);
        }
    }
}

}  // namespace

void quantize_row_q2_nl_ref(const float * x, block_q2_nl * y, int64_t k) {
    kvtuner::quantize_row<kvtuner::side::K, halves>(x, y, k);
}

void quantize_row_q3_nl_ref(const float * x, block_q3_nl * y, int64_t k) {
    kvtuner::quantize_row<kvtuner::side::K, halves>(x, y, k);
}

ggml_from_float_t kvtuner_from_float_ref(enum ggml_type type, bool is_v) {
    switch (type) {
#define KVTUNER_OWN_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:                  \
        return is_v ? quantize_values<block_##name> : (ggml_from_float_t)quantize_row_##name##_ref;
#include "kvtuner-formats.def"
        default:
            return ggml_get_type_traits(type)->from_float_ref;
    }
}

void dequantize_row_q2_nl(const block_q2_nl * x, float * y, int64_t k) {
    dequantize_row(x, y, k);
}

void dequantize_row_q3_nl(const block_q3_nl * x, float * y, int64_t k) {
    dequantize_row(x, y, k);
}

bool kvtuner_is_cache_only(enum ggml_type type) {
    switch (type) {
#include "kvtuner-own-cases.inc"
        return true;
        default:
            return false;
    }
}

bool kvtuner_has_cache_only_type(const struct ggml_tensor * node) {
    bool found = kvtuner_is_cache_only(node->type);
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        found = found || (node->src[i] && kvtuner_is_cache_only(node->src[i]->type));
    }
    return found;
}
