// The small inputs of a graph, all by one kernel.
#pragma once

#include "kvtuner-inputs.h"

struct ggml_backend_cuda_context;

// As kvtuner_set_inputs_t. False also where the host has no memory for it that the device reads.
bool kvtuner_cuda_set_inputs(ggml_backend_cuda_context & ctx, const kvtuner_input * inputs, size_t n);

// of a context that goes: waits for its inputs
void kvtuner_cuda_forget_inputs(const ggml_backend_cuda_context & ctx);
