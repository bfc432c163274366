// Norms of rows that products of vectors read next: see kvtuner-cuda-norm-kernel.cuh.
#pragma once

#include "ggml-cuda/common.cuh"
#include "kvtuner-multiplied.h"

bool kvtuner_cuda_takes(const kvtuner::multiplied_norm & norm);

// computes its output, and the rows of it that the product reads
void kvtuner_cuda_norm(ggml_backend_cuda_context & ctx, const kvtuner::multiplied_norm & norm);
