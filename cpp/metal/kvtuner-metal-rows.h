// Rows of cache types that upstream's kernels do not read or write: set_rows, get_rows, copies.
#pragma once

#include "ggml-metal-device.h"

struct ggml_tensor;

// Does a node that is up to kernels of ours. False: it is not, and nothing was done.
bool kvtuner_metal_run(ggml_metal_library_t library, ggml_metal_encoder_t encoder, const ggml_tensor * node);

// Whether a device has the kernels that write and attend the caches of a marked FLASH_ATTN_EXT node, as far as kernels
// of ours do so.
bool kvtuner_metal_has_kernels(ggml_metal_device_t device, const ggml_tensor * node);
