// Which types are for caches alone.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// true for a type that is for caches alone: a model file cannot hold it
GGML_API bool kvtuner_is_cache_only(enum ggml_type type);

// true if the result or a source of a node has such a type
GGML_API bool kvtuner_has_cache_only_type(const struct ggml_tensor * node);

#ifdef __cplusplus
}
#endif
