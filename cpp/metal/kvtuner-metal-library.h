// Kernels of ours by what they are compiled for: when they are first asked for, which keeps a start short however many
// types there are.
#pragma once

#include "kvtuner-metal-source.h"

#include "ggml-metal-device.h"

#include <string>
#include <variant>
#include <vector>

// A kernel in a file of cpp/metal, as a graph runs it.
struct kvtuner_metal_kernel {
    std::string file, name;
    int threads;  // of a threadgroup
    kvtuner_metal_defines defines;
    int first_constant = 0;
    std::vector<std::variant<int16_t, bool>> constants;  // of its function, from the first on
};

// Why a device cannot run it: its compiler refuses it, or it allows fewer threads. Empty where it can.
std::string kvtuner_metal_problem(ggml_metal_device_t device, const kvtuner_metal_kernel & kernel);

// whether simdgroups have 32 lanes, as kernels of ours want: where they multiply matrices
bool kvtuner_metal_has_lanes(ggml_metal_device_t device);

// begins to encode one; ends the program where the device cannot run it, which contexts ask before
void kvtuner_metal_begin(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const kvtuner_metal_kernel & kernel);

struct ggml_tensor;

// where the device has a tensor
ggml_metal_buffer_id kvtuner_metal_buffer(const ggml_tensor * tensor);
