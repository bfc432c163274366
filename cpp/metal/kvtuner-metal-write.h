// The write of rows of floats into a cache by one kernel, with all that a plan does to them before.
#pragma once

#include "kvtuner-metal-library.h"
#include "kvtuner-writes.h"

#include "ggml-metal-device.h"

#include <vector>

struct ggml_tensor;

// whether the kernel takes a write of a plan
bool kvtuner_metal_can_write(const kvtuner_write & write);

// those that write heads of a type, rotated as caches rotate them and as they are, and of another type beside the cache
std::vector<kvtuner_metal_kernel> kvtuner_metal_write_kernels(ggml_type type, ggml_type exact, int64_t head_size);

void kvtuner_metal_write(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const kvtuner_write & write);

// SET_ROWS of floats as they are
void kvtuner_metal_set_rows(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * set_rows);
