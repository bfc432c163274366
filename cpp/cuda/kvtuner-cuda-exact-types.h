// The types of exact rows that kernels of ours store and read.
#pragma once

#include "ggml.h"

namespace kvtuner::cuda {

inline bool is_exact_type(ggml_type type) {
    return type == GGML_TYPE_F16 || type == GGML_TYPE_Q8_0;
}

}  // namespace kvtuner::cuda
