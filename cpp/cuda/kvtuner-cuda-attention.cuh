// Attention over caches that follow a plan: exact rows and centers of blocks of positions included.
#pragma once

#include "kvtuner-cuda-dense.cuh"
#include "kvtuner-cuda-plan.cuh"
#include "kvtuner-cuda-prefill-plan.cuh"

// whether a device runs a marked FLASH_ATTN_EXT node, and whether it does so without a copy of the cache in f16 where
// queries are few
bool kvtuner_cuda_attention_runs(int device, const ggml_tensor * node);
bool kvtuner_cuda_attention_is_fast(int device, const ggml_tensor * node);

// whether it rotates queries and output of a node itself
bool kvtuner_cuda_attention_rotates(int device, const ggml_tensor * node);

// Computes a FLASH_ATTN_EXT node, of a graph whose masks these are. False: nothing was done, upstream's code takes it.
bool kvtuner_cuda_attention(ggml_backend_cuda_context & ctx, ggml_tensor * node, const kvtuner::rotations & around,
                            kvtuner::cuda::kept_masks & masks);
bool kvtuner_cuda_attention(ggml_backend_cuda_context & ctx, ggml_tensor * node);
