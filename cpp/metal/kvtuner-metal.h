// What of a graph kernels of ours do on Metal. Upstream's Objective-C includes this, too.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// whether a node is up to kernels of ours: upstream has none for its types
bool kvtuner_metal_takes(const struct ggml_tensor * node);

// of those that are: whether there is one
bool kvtuner_metal_supports_op(const struct ggml_tensor * node);

#ifdef __cplusplus
}
#endif
