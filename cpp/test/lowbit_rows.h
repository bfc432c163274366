// Rows of random values, and their blocks in q2_nl and q3_nl as keys and as values.
#pragma once

#include "cpu_backend.h"
#include "kvtuner-lowbit.h"

#include <cstdio>
#include <random>
#include <string>
#include <vector>

inline int failures = 0;

inline void expect(bool is_right, const std::string & what) {
    if (!is_right) {
        printf("%s\n", what.c_str());
        ++failures;
    }
}

using values = std::vector<float>;
using bytes = std::vector<uint8_t>;

struct row_kind {
    const char * name;
    float scale;
    float outlier;  // what every 61st value is multiplied by
};

inline const row_kind KINDS[] = {
    { "normal", 1, 1 }, { "tiny", 1e-6f, 1 }, { "large", 1e4f, 1 }, { "outliers", 1, 40 }, { "zero", 0, 1 },
};

inline values random_row(int64_t n, const row_kind & kind, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    values row(n);
    for (int64_t i = 0; i < n; ++i) {
        row[i] = normal(random) * kind.scale * (i % 61 == 7 ? kind.outlier : 1);
    }
    return row;
}

constexpr bool K = false, V = true;
constexpr bool SIDES[] = { K, V };

inline std::string text(ggml_type type, bool side) {
    return std::string(ggml_type_name(type)) + (side == V ? ", values" : ", keys");
}

inline bytes quantize(ggml_type type, const values & row, bool side, ggml_from_float_t from_float = nullptr) {
    bytes blocks(ggml_row_size(type, row.size()), 0xa5);
    from_float = from_float ? from_float : CPU_FUNCTION(kvtuner_from_float)(type, side);
    from_float(row.data(), blocks.data(), row.size());
    return blocks;
}

inline values dequantize(ggml_type type, const bytes & blocks, int64_t n) {
    values row(n);
    ggml_get_type_traits(type)->to_float(blocks.data(), row.data(), n);
    return row;
}

// the part of the test about keys and values: their scales by definition, and of numbers that are none
void test_sides(std::mt19937 & random);
