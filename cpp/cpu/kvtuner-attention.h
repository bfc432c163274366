// Attention over caches of any K and V type on the CPU, for contexts whose cache follows a plan.
//
// Keys and values become floats once for all query heads and rows that share them. The result does not depend on the
// number of threads, nor on what else is in the batch.
#pragma once

#include "ggml.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// bytes of the common buffer of so many threads that kvtuner_flash_attn needs to share out all of this node; 0 where it
// leaves the node alone. With less, and with fewer threads, threads take whole blocks, to the same result.
size_t kvtuner_flash_attn_size(const struct ggml_tensor * node, int n_threads);

// Computes a FLASH_ATTN_EXT node. False: nothing was done, upstream's code takes it.
bool kvtuner_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * node);

#ifdef __cplusplus
}
#endif
