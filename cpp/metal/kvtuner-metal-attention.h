// Attention over caches of a plan on Metal: of few queries by a kernel of ours, of many by upstream's, over copies in
// f16 of what that does not read.
#pragma once

#include "kvtuner-metal-dense.h"
#include "kvtuner-rotations.h"

#include "ggml-metal-device.h"

struct ggml_tensor;

// whether a node is up to us: upstream has no kernel for it, or a slower one
bool kvtuner_metal_takes_attention(const ggml_tensor * node);

// of those that are: whether it can be done
bool kvtuner_metal_supports_attention(const ggml_tensor * node);

// whether a kernel of ours does it on such a device
bool kvtuner_metal_has_attention(ggml_metal_device_t device, const ggml_tensor * node);

// those that attend its cache: as many queries as it has and more, of few tokens and of many
std::vector<kvtuner_metal_kernel> kvtuner_metal_attention_kernels(const ggml_tensor * node);

// whether a kernel of ours does it, which can also do the rotations around it
bool kvtuner_metal_attends(const ggml_tensor * node);

// does such a node
void kvtuner_metal_attend(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node,
                          const kvtuner::rotations & around = {});

// Does a node, or makes the copies for it. What is left to upstream: nothing (null), the node, or that over copies,
// which is put into `dense`.
ggml_tensor * kvtuner_metal_attention(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_tensor * node,
                                      kvtuner_metal_dense & dense);

// bytes behind the result of a node beside those that upstream reserves there
size_t kvtuner_metal_attention_extra(const ggml_tensor * node, size_t reserved);
