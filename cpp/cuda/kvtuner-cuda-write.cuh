// The write of new keys and values in one launch, bit for bit what its steps would store.
#pragma once

#include "kvtuner-writes.h"

struct ggml_backend_cuda_context;

// the writes of a graph that this back end does in one launch; none if that is off
kvtuner_writes kvtuner_cuda_writes(const ggml_cgraph & graph, bool is_off);

// Does the write that starts with node i, if one does.
void kvtuner_cuda_write(ggml_backend_cuda_context & ctx, const kvtuner_writes & writes, int i);
