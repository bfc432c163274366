// The kernels of cpp/cuda for q2_nl and q3_nl, on the CPU: what they store is what the reference stores, bit for bit,
// for keys and for values, also of rows that no model makes.

#include "cuda_kernels.h"
#include "hostile_rows.h"
#include "kvtuner-lowbit.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>

using namespace cuda_kernels;

namespace {

constexpr ggml_type TYPES[] = { GGML_TYPE_Q2_NL, GGML_TYPE_Q3_NL };
constexpr bool K = false, V = true;

int failures = 0;
int64_t n_blocks = 0;

void expect(bool is_right, ggml_type type, bool of_values, const std::string & what) {
    if (!is_right) {
        printf("%s, %s: %s\n", ggml_type_name(type), of_values ? "values" : "keys", what.c_str());
        ++failures;
    }
}

// what the reference stores of rows in these cells
bytes reference(const written_rows & to, const values & rows) {
    const size_t row_size = ggml_row_size(to.type, to.row_length);
    bytes cache(to.n_cells * row_size);
    for (size_t i = 0; i < to.cells.size(); ++i) {
        kvtuner_from_float_ref(to.type, to.of_values)(rows.data() + i * to.row_length,
                                                      cache.data() + to.cells[i] * row_size, to.row_length);
    }
    n_blocks += (int64_t)rows.size() / QK_NL;
    return cache;
}

// cells in another order than the rows, and some without one
written_rows cells_for(ggml_type type, bool of_values, int64_t row_length, int64_t n_rows) {
    written_rows to = { type, of_values, row_length, std::vector<int64_t>(n_rows), n_rows + 3 };
    for (int64_t i = 0; i < n_rows; ++i) {
        to.cells[i] = n_rows + 2 - i;
    }
    return to;
}

void test_rows(ggml_type type, bool of_values, const std::string & kind, const values & x, int64_t row_length) {
    const written_rows to = cells_for(type, of_values, row_length, (int64_t)x.size() / row_length);
    expect(set_rows(to, x) == reference(to, x), type, of_values, "set_rows of " + kind);
    expect(write(to, x, 0, {}, {}) == reference(to, x), type, of_values, "write of " + kind);
}

ggml_fp16_t scale_of(ggml_type type, bool of_values, const float * x, float factor) {
    float block[QK_NL];
    std::transform(x, x + QK_NL, block, [factor](float value) { return value * factor; });
    uint8_t stored[sizeof(block_q3_nl)];
    kvtuner_from_float_ref(type, of_values)(block, stored, QK_NL);
    ggml_fp16_t d;
    memcpy(&d, stored, sizeof(d));
    return d;
}

// Blocks whose scale lies next to the middle between two numbers of half precision: there the last bit of each sum
// counts, and so the order of its additions.
values between_halves(ggml_type type, bool of_values, int64_t n, std::mt19937 & random) {
    values x = normal_values(n, random);
    for (auto block = x.begin(); block != x.end(); block += QK_NL) {
        float low = 1, high = 1.002f;
        const ggml_fp16_t d = scale_of(type, of_values, &*block, low);
        while (std::nextafter(low, high) < high) {
            const float middle = low + (high - low) / 2;
            (scale_of(type, of_values, &*block, middle) == d ? low : high) = middle;
        }
        const float factor = random() % 2 ? low : high;
        std::transform(block, block + QK_NL, block, [factor](float value) { return value * factor; });
    }
    return x;
}

// every code and every scale that is a number
void test_levels(ggml_type type, std::mt19937 & random) {
    const int64_t n = 4 * 65536;
    bytes blocks(ggml_row_size(type, n));
    const size_t size = ggml_type_size(type);
    for (size_t i = 0; i < blocks.size(); ++i) {
        blocks[i] = (uint8_t)random();
    }
    for (size_t b = 0; b < blocks.size() / size; ++b) {
        const ggml_fp16_t d = (ggml_fp16_t)((random() % 2 << 15) | random() % 0x7c00);
        memcpy(blocks.data() + b * size, &d, sizeof(d));
    }
    values wanted(n);
    ggml_get_type_traits(type)->to_float(blocks.data(), wanted.data(), n);
    const values found = copy_from_blocks(type, blocks, n);
    expect(memcmp(found.data(), wanted.data(), n * sizeof(float)) == 0, type, K, "values of blocks");
}

// the steps of a write one after the other
values prepared(const values & rows, int64_t row_length, int64_t rotation, const values & factors,
                const values & center) {
    values x = rows;
    const float scale = rotation ? 1 / sqrtf((float)rotation) : 1;
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = (factors.empty() ? x[i] : x[i] * factors[i % row_length]) * scale;
    }
    for (int64_t h = 1; h < rotation; h *= 2) {
        for (size_t i = 0; i < x.size(); ++i) {
            if ((i & h) == 0) {
                const float low = x[i], high = x[i + h];
                x[i] = low + high;
                x[i + h] = low - high;
            }
        }
    }
    for (size_t i = 0; i < x.size() && !center.empty(); ++i) {
        x[i] -= center[i % row_length];
    }
    return x;
}

void test_write(ggml_type type, bool of_values, int64_t rotation, std::mt19937 & random) {
    const int64_t row_length = 3 * std::max<int64_t>(rotation, QK_NL), n_rows = 5;
    const written_rows to = cells_for(type, of_values, row_length, n_rows);
    for (int steps = 0; steps < 4; ++steps) {
        const values rows = normal_values(row_length * n_rows, random);
        const values factors = steps & 1 ? normal_values(row_length, random) : values();
        const values center = steps & 2 ? normal_values(row_length, random) : values();
        const bytes wanted = reference(to, prepared(rows, row_length, rotation, factors, center));
        expect(write(to, rows, rotation, factors, center) == wanted, type, of_values,
               "a write with rotation " + std::to_string(rotation) + (steps & 1 ? ", scaled" : "") +
                       (steps & 2 ? ", centered" : ""));
    }
}

}  // namespace

int main() {
    std::mt19937 random(1);
    for (const ggml_type type : TYPES) {
        test_levels(type, random);
        for (const bool of_values : { K, V }) {
            for (const auto & [kind, x] : hostile_rows(QK_NL * 3 * 10, random)) {
                test_rows(type, of_values, kind, x, QK_NL * 3);
                if (!of_values) {
                    const written_rows all = { type, K, (int64_t)x.size(), { 0 }, 1 };
                    expect(copy_to_blocks(type, x) == reference(all, x), type, K, "a copy of " + kind);
                }
            }
            test_rows(type, of_values, "scales between two halves",
                      between_halves(type, of_values, QK_NL * 3 * 50, random), QK_NL * 3);
            for (const int64_t rotation : { 0, 64, 128, 256, 512 }) {
                test_write(type, of_values, rotation, random);
            }
        }
    }
    printf("%lld blocks\n%d failures\n", (long long)n_blocks, failures);
    return failures != 0;
}
