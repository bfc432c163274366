// Kernels of ours by what they are compiled for: when they are first asked for, which keeps a start short however many
// types there are.
#pragma once

#include "kvtuner-metal-source.h"

#include "ggml-metal-device.h"

// The pipeline of a kernel in a file of cpp/metal. Its `pipeline` is null where the device's compiler refuses it, which
// the log tells. `constants`: its function constants, or null.
ggml_metal_pipeline_with_params kvtuner_metal_pipeline(ggml_metal_device_t device, const std::string & file,
                                                       const std::string & kernel,
                                                       const kvtuner_metal_defines & defines,
                                                       ggml_metal_cv_t constants = nullptr,
                                                       const std::string & name = "");

struct ggml_tensor;

// where the device has a tensor
ggml_metal_buffer_id kvtuner_metal_buffer(const ggml_tensor * tensor);
