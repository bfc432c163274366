// The kernels of cpp/cuda on the CPU.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace cuda_kernels {

using bytes = std::vector<uint8_t>;
using values = std::vector<float>;

// rows that are written into a cache, those of values or of keys
struct written_rows {
    ggml_type type;
    bool of_values;
    int64_t row_length;
    std::vector<int64_t> cells;  // of each row
    int64_t n_cells;
};

bytes set_rows(const written_rows & to, const values & rows);

// as keys
bytes copy_to_blocks(ggml_type type, const values & x);
values copy_from_blocks(ggml_type type, const bytes & blocks, int64_t n);

// The write in one launch. rotation 0: none; factors and center are empty or have row_length values.
bytes write(const written_rows & to, const values & rows, int64_t rotation, const values & factors,
            const values & center);

}  // namespace cuda_kernels
