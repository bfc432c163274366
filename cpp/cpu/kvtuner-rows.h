// Rows of a cache as floats, row by row or column by column, for each type.
#pragma once

#include "ggml.h"

#include <cstdint>

namespace kvtuner {

// n rows of n_value values, which take n_bytes
struct row_range {
    const char * first;  // row i lies at first + stride * i, or at first + stride * rows[i]
    int64_t stride;      // bytes
    int64_t n, n_value, n_bytes;
    const int32_t * rows;  // null where they lie in order, and the next are to be asked for
};

using read_rows = void (*)(const row_range & from, float * values, int64_t wide);

struct row_reader {
    // rows begin `wide` values apart; what pads them stays as it is
    read_rows rows;

    // columns begin `wide` values apart, and are padded to 16 tokens or less by what does not matter
    read_rows columns;
};

inline const char * row_at(const row_range & from, int64_t i) {
    return from.first + (from.rows ? from.rows[i] : i) * from.stride;
}

// asks for a row that is read soon
inline void prefetch_row(const row_range & from, int64_t i) {
    constexpr int64_t CACHE_LINE = 64;  // bytes
    const char * row = row_at(from, i);
    for (int64_t j = 0; j < from.n_bytes; j += CACHE_LINE) {
        __builtin_prefetch(row + j);
    }
}

}  // namespace kvtuner

// null for a type that no cache has
extern "C" const kvtuner::row_reader * kvtuner_row_reader_of(ggml_type type);
