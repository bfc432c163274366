// Rows of a cache as floats, one function for each type.
#pragma once

#include "ggml.h"

#include <cstdint>

namespace kvtuner {

// n rows of n_value values, which take n_bytes, `stride` bytes apart
struct row_range {
    const char * first;
    int64_t stride, n, n_value, n_bytes;
};

// writes the rows `wide` values apart; what pads them stays as it is
using read_rows = void (*)(const row_range & from, float * values, int64_t wide);

// null for a type that no cache has
read_rows row_reader(ggml_type type);

}  // namespace kvtuner
