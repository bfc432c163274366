#include "lowbit_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

// what knows no side writes keys, and other types have no sides
void test_default(std::mt19937 & random) {
    for (const ggml_type type : { GGML_TYPE_Q2_NL, GGML_TYPE_Q3_NL, GGML_TYPE_Q4_0 }) {
        const values row = random_row(64 * 8, KINDS[0], random);
        const ggml_from_float_t of_cpu = CPU_FUNCTION(ggml_get_type_traits_cpu)(type)->from_float;
        const ggml_from_float_t of_base = ggml_get_type_traits(type)->from_float_ref;
        expect(quantize(type, row, K) == quantize(type, row, K, of_cpu), text(type, K) + ": from_float");
        expect(quantize(type, row, K) == quantize(type, row, K, of_base), text(type, K) + ": from_float_ref");
        const bool is_same = quantize(type, row, K) == quantize(type, row, V);
        expect(is_same == (type == GGML_TYPE_Q4_0), text(type, V) + ": the side");
    }
}

float scale_of(const bytes & block) {
    ggml_fp16_t d;
    memcpy(&d, block.data(), sizeof(d));
    return ggml_fp16_to_fp32(d);
}

// q the levels of values x: least squares has <x, q> / <q, q>, and without bias it is <x, x> / <x, q>
void test_scale(ggml_type type, bool side, std::mt19937 & random) {
    for (int i = 0; i < 1000; ++i) {
        const values x = random_row(QK_NL, KINDS[i % 4], random);
        const bytes block = quantize(type, x, side);
        const values found = dequantize(type, block, QK_NL);
        double xx = 0, xq = 0, qq = 0;
        for (int j = 0; j < QK_NL; ++j) {
            const double q = found[j] / scale_of(block);
            xx += (double)x[j] * x[j];
            xq += x[j] * q;
            qq += q * q;
        }
        const double wanted = side == V ? xx / xq : (xq / qq + xx / xq) / 2;
        const double half_step = std::max(std::ldexp(wanted, -11), std::ldexp(1.0, -25));
        expect(std::fabs(scale_of(block) - wanted) <= 1.01 * half_step, text(type, side) + ": the scale");
    }
}

void test_broken_numbers(ggml_type type, bool side, std::mt19937 & random) {
    values row = random_row(QK_NL, KINDS[0], random);
    row[5] = INFINITY;
    expect(scale_of(quantize(type, row, side)) == INFINITY, text(type, side) + ": the scale of an infinite value");
    row[6] = NAN;
    expect(std::isnan(scale_of(quantize(type, row, side))), text(type, side) + ": the scale of no number");
    expect(scale_of(quantize(type, values(QK_NL, 1e20f), side)) == INFINITY, text(type, side) + ": too large");
    expect(scale_of(quantize(type, values(QK_NL, 1e-30f), side)) == 0, text(type, side) + ": too small");
}

}  // namespace

void test_sides(std::mt19937 & random) {
    test_default(random);
    for (const ggml_type type : { GGML_TYPE_Q2_NL, GGML_TYPE_Q3_NL }) {
        for (const bool side : SIDES) {
            test_scale(type, side, random);
            test_broken_numbers(type, side, random);
        }
    }
}
