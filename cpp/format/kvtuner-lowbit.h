// The cache types q2_nl and q3_nl in ggml: quantize, dequantize, dot products.
#pragma once

#define GGML_COMMON_DECL_C
#include "ggml-common.h"
#include "ggml.h"
#include "kvtuner-blocks.h"
#include "kvtuner-cache-only.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// k values, whole blocks of 64
GGML_API void quantize_row_q2_nl_ref(const float * x, block_q2_nl * y, int64_t k);
GGML_API void quantize_row_q3_nl_ref(const float * x, block_q3_nl * y, int64_t k);
GGML_API void dequantize_row_q2_nl(const block_q2_nl * x, float * y, int64_t k);
GGML_API void dequantize_row_q3_nl(const block_q3_nl * x, float * y, int64_t k);

// of ggml-cpu: the same blocks, and dot products with q8_0 of n values
void quantize_row_q2_nl(const float * x, void * y, int64_t k);
void quantize_row_q3_nl(const float * x, void * y, int64_t k);
void ggml_vec_dot_q2_nl_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by,
                             int nrc);
void ggml_vec_dot_q3_nl_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by,
                             int nrc);

#ifdef __cplusplus
}
#endif
