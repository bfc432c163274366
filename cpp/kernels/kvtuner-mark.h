// The mark of a cache that follows a plan, on the tensors that hold it: kernels of ours take such caches alone.
#pragma once

#include "ggml.h"

#define KVTUNER_MARK 0x6b767475

static inline void kvtuner_mark(struct ggml_tensor * cache) {
    cache->op_params[0] = KVTUNER_MARK;
}

static inline bool kvtuner_is_marked(const struct ggml_tensor * cache) {
    return cache->op == GGML_OP_NONE && cache->op_params[0] == KVTUNER_MARK;
}
