// Rows of cache types that upstream's kernels do not read or write: set_rows, get_rows, copies.
#pragma once

#include "ggml-metal-device.h"

struct ggml_tensor;

// Does a node that is up to kernels of ours. False: it is not, and nothing was done.
bool kvtuner_metal_run(ggml_metal_library_t library, ggml_metal_encoder_t encoder, const ggml_tensor * node);

// Why a device cannot run one of the kernels of ours that write, shift and attend the caches of a marked FLASH_ATTN_EXT
// node, with as many queries as it has and more. Null where it can; else a text that stays until the thread asks again.
const char * kvtuner_metal_kernels_problem(ggml_metal_device_t device, const ggml_tensor * node);
