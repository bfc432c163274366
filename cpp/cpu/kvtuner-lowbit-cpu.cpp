#include "kvtuner-lowbit.h"
#include "kvtuner-lowbit-dot.h"
#include "kvtuner-quantize.h"

#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml-cpu/simd-mappings.h"

#include <cassert>

namespace {

struct halves {
    static ggml_half of(float x) {
        return GGML_CPU_FP32_TO_FP16(x);
    }

    static float to_float(ggml_half x) {
        return GGML_CPU_FP16_TO_FP32(x);
    }
};

template <typename BLOCK>
void quantize_values(const float * x, void * y, int64_t k) {
    kvtuner::quantize_row<kvtuner::side::V, halves>(x, (BLOCK *)y, k);
}

template <typename BLOCK>
float dot(int n, const BLOCK * x, const block_q8_0 * y, [[maybe_unused]] int nrc) {
    assert(n % QK_NL == 0 && nrc == 1);
    kvtuner_dot_sum sum = kvtuner_dot_zero();
    for (int b = 0; b < n / QK_NL; ++b) {
        const float d = halves::to_float(x[b].d);
        sum = kvtuner_dot_add(sum, kvtuner_levels_of(x[b]), y + 2 * b, d * halves::to_float(y[2 * b].d),
                              d * halves::to_float(y[2 * b + 1].d));
    }
    return kvtuner_dot_total(sum);
}

}  // namespace

void quantize_row_q2_nl(const float * x, void * y, int64_t k) {
    kvtuner::quantize_row<kvtuner::side::K, halves>(x, (block_q2_nl *)y, k);
}

void quantize_row_q3_nl(const float * x, void * y, int64_t k) {
    kvtuner::quantize_row<kvtuner::side::K, halves>(x, (block_q3_nl *)y, k);
}

ggml_from_float_t kvtuner_from_float(enum ggml_type type, bool is_v) {
    switch (type) {
#define KVTUNER_OWN_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:                  \
        return is_v ? quantize_values<block_##name> : quantize_row_##name;
#include "kvtuner-formats.def"
        default:
            return ggml_get_type_traits_cpu(type)->from_float;
    }
}

void ggml_vec_dot_q2_nl_q8_0(int n, float * s, size_t, const void * x, size_t, const void * y, size_t, int nrc) {
    *s = dot(n, (const block_q2_nl *)x, (const block_q8_0 *)y, nrc);
}

void ggml_vec_dot_q3_nl_q8_0(int n, float * s, size_t, const void * x, size_t, const void * y, size_t, int nrc) {
    *s = dot(n, (const block_q3_nl *)x, (const block_q8_0 *)y, nrc);
}
