// The cache types q2_nl and q3_nl in ggml: quantize, dequantize, dot products.
#pragma once

#define GGML_COMMON_DECL_C
#include "ggml-common.h"
#include "ggml.h"
#include "kvtuner-blocks.h"
#include "kvtuner-cache-only.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// k values, whole blocks of 64; what is written is written as keys
GGML_API void quantize_row_q2_nl_ref(const float * x, block_q2_nl * y, int64_t k);
GGML_API void quantize_row_q3_nl_ref(const float * x, block_q3_nl * y, int64_t k);
GGML_API void dequantize_row_q2_nl(const block_q2_nl * x, float * y, int64_t k);
GGML_API void dequantize_row_q3_nl(const block_q3_nl * x, float * y, int64_t k);

// How a cache of a type converts its keys, or its values (is_v): by from_float_ref of the type, but for values in q2_nl
// and q3_nl, whose blocks have another scale.
GGML_API ggml_from_float_t kvtuner_from_float_ref(enum ggml_type type, bool is_v);

// of ggml-cpu: the same blocks, and dot products with q8_0 of n values
void quantize_row_q2_nl(const float * x, void * y, int64_t k);
void quantize_row_q3_nl(const float * x, void * y, int64_t k);
void ggml_vec_dot_q2_nl_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by,
                             int nrc);
void ggml_vec_dot_q3_nl_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by,
                             int nrc);
ggml_from_float_t kvtuner_from_float(enum ggml_type type, bool is_v);

#ifdef __cplusplus
}
#endif
