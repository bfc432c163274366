// Attention of many queries: the tokens of a cache as halves behind the result of its node, for upstream's kernels.
#pragma once

#include "kvtuner-metal-library.h"

#include "ggml-metal-device.h"
#include "ggml.h"

#include <cstddef>
#include <vector>

// A node over copies. A side that upstream reads as it is stays so.
struct kvtuner_metal_dense {
    ggml_tensor node, k, v, mask;
};

// whether upstream's kernels cannot read what a node reads
bool kvtuner_metal_needs_copies(const ggml_tensor * node);

// whether they can read copies of it
bool kvtuner_metal_can_copy(const ggml_tensor * node);

// the kernels that make them
std::vector<kvtuner_metal_kernel> kvtuner_metal_copy_kernels(const ggml_tensor * node);

// makes the copies, and the node over them
void kvtuner_metal_copy(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node,
                        kvtuner_metal_dense & dense);

// the bytes behind the result of a node that are needed
size_t kvtuner_metal_bytes_behind(const ggml_tensor * node);
