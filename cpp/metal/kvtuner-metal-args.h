// Arguments of kernels of ours, the same for the host and for Metal. Strides are in bytes.
#pragma once

// rows f32 [n, n_rows, ..] into a cache
typedef struct {
    int32_t pieces_per_row;  // of as many values as a simdgroup takes
    int32_t n_rows;
    uint64_t row_stride[3];
    uint64_t index_stride[3];
    int32_t n_index[2];  // of the second and third dimension: others repeat
    int32_t is_wide;     // indices of 64 bits
    uint64_t cache_stride[3];
    int32_t is_of_values;
    int32_t is_rotated;
    float scale;
    int32_t has_factors;
    int32_t has_center;   // f32, one for all rows
    int32_t has_centers;  // f16, that of the block of positions of each row
    int32_t has_exact;    // rows are stored beside the cache, too
    int32_t exact_is_of_values;
    uint64_t exact_stride;
} kvtuner_metal_write_args;

// rows of blocks, found by index, as floats
typedef struct {
    int32_t n;  // values of a row
    uint64_t from_stride[3];
    uint64_t index_stride[3];
    uint64_t to_stride[3];
} kvtuner_metal_get_rows_args;

// n values of one tensor as those of another, in the order of both
typedef struct {
    int64_t n;
    int64_t from_ne[3];
    uint64_t from_stride[4];
    int64_t to_ne[3];
    uint64_t to_stride[4];
} kvtuner_metal_copy_args;
