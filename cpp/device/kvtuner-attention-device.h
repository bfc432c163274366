// What a back end with attention kernels of ours tells of them, by the name below in its registry.
#pragma once

#include "ggml-backend.h"

#define KVTUNER_ATTENTION_IS_FAST "kvtuner_attention_is_fast"

// whether a device attends a marked FLASH_ATTN_EXT node of few queries without a copy of its cache in f16
typedef bool (*kvtuner_attention_is_fast_t)(ggml_backend_dev_t device, const struct ggml_tensor * node);

#define KVTUNER_KERNELS_PROBLEM "kvtuner_kernels_problem"

// of back ends that compile kernels when they are asked for: why a device cannot run those that write, shift and attend
// the caches of a marked FLASH_ATTN_EXT node; null where it can
typedef const char * (*kvtuner_kernels_problem_t)(ggml_backend_dev_t device, const struct ggml_tensor * node);
