// The cache types q2_nl and q3_nl: the same blocks from every implementation, scales by their definition, right dot
// products, small errors. With --time also how long a row takes to write, beside q4_0.

#include "lowbit_rows.h"

#include <chrono>
#include <cmath>
#include <cstring>

namespace {

double mean_square(const values & x) {
    double sum = 0;
    for (const float value : x) {
        sum += (double)value * value;
    }
    return sum / x.size();
}

double relative_error(ggml_type type, const values & row, bool side) {
    values error = dequantize(type, quantize(type, row, side), row.size());
    for (size_t i = 0; i < row.size(); ++i) {
        error[i] -= row[i];
    }
    return mean_square(error) / mean_square(row);
}

// a block written by hand: value j has code j % n_levels
void test_layout() {
    const int8_t levels2[] = { KVTUNER_Q2_NL_LEVELS };
    const int8_t levels3[] = { KVTUNER_Q3_NL_LEVELS };
    block_q2_nl two = {};
    block_q3_nl three = {};
    two.d = three.d = ggml_fp32_to_fp16(0.5f);
    for (int j = 0; j < QK_NL; ++j) {
        two.qs[j % 16] |= (j % 4) << 2 * (j / 16);
        three.qs[j % 16] |= (j * 5 % 8 & 3) << 2 * (j / 16);
        three.qh[j % 8] |= (j * 5 % 8 >> 2) << j / 8;
    }
    float found2[QK_NL];
    float found3[QK_NL];
    ggml_get_type_traits(GGML_TYPE_Q2_NL)->to_float(&two, found2, QK_NL);
    ggml_get_type_traits(GGML_TYPE_Q3_NL)->to_float(&three, found3, QK_NL);
    for (int j = 0; j < QK_NL; ++j) {
        expect(found2[j] == 0.5f * levels2[j % 4] && found3[j] == 0.5f * levels3[j * 5 % 8],
               "the layout of value " + std::to_string(j));
    }
}

void test_blocks(ggml_type type, bool side, std::mt19937 & random) {
    for (const row_kind & kind : KINDS) {
        const values row = random_row(64 * 128, kind, random);
        const bytes blocks = quantize(type, row, side);
        expect(quantize(type, row, side, kvtuner_from_float_ref(type, side)) == blocks,
               text(type, side) + ", " + kind.name + ": the CPU's blocks differ from the reference");
        for (const float value : dequantize(type, blocks, row.size())) {
            expect(std::isfinite(value) && (kind.scale != 0 || value == 0), std::string(kind.name) + ": not finite");
        }
    }
}

// nearly normal, and exact on every machine: sums of four integers
values fixed_row(int64_t n) {
    uint64_t state = 88172645463325252u;
    values row(n);
    for (float & value : row) {
        int sum = 0;
        for (int i = 0; i < 4; ++i) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (int)(state >> 52) - 2048;
        }
        value = (float)sum / 4096;
    }
    return row;
}

// FNV-1a over the blocks of the same row: what one machine writes another reads
void test_same_everywhere(ggml_type type, bool side, uint64_t wanted) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const uint8_t byte : quantize(type, fixed_row(64 * 256), side)) {
        hash = (hash ^ byte) * 0x100000001b3u;
    }
    char found[32];
    snprintf(found, sizeof(found), "%016llx", (unsigned long long)hash);
    expect(hash == wanted, text(type, side) + ": blocks hash to " + found);
}

// Against Lloyd-Max, the best quantizer with one scale for all values of a normal distribution. Its error D is D/(1-D)
// without bias.
void test_error(ggml_type type, bool side, double lloyd_max, std::mt19937 & random) {
    const double best = side == V ? lloyd_max / (1 - lloyd_max) : lloyd_max;
    for (const int64_t length : { 64, 128, 256 }) {
        double sum = 0;
        for (int i = 0; i < 2000; ++i) {
            sum += relative_error(type, random_row(length, KINDS[0], random), side);
        }
        const double ratio = sum / 2000 / best;
        printf("%s, rows of %3d: %.3f of Lloyd-Max\n", text(type, side).c_str(), (int)length, ratio);
        expect(ratio < 1.0, "more error than Lloyd-Max");
    }
}

double dot_by_definition(const values & x, const values & y) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        sum += (double)x[i] * y[i];
    }
    return sum;
}

void test_dot(ggml_type type, std::mt19937 & random) {
    for (const int64_t n : { 64, 128, 192, 256, 4096 }) {
        for (const row_kind & kind : KINDS) {
            const bytes x = quantize(type, random_row(n, kind, random), K);
            const bytes y = quantize(GGML_TYPE_Q8_0, random_row(n, KINDS[0], random), K);
            float found = NAN;
            CPU_FUNCTION(ggml_get_type_traits_cpu)(type)->vec_dot(n, &found, 0, x.data(), 0, y.data(), 0, 1);
            const values exact_x = dequantize(type, x, n);
            const values exact_y = dequantize(GGML_TYPE_Q8_0, y, n);
            const double size = std::sqrt(mean_square(exact_x) * mean_square(exact_y)) * n;
            expect(std::fabs(found - dot_by_definition(exact_x, exact_y)) <= 1e-6 * size,
                   std::string(ggml_type_name(type)) + ", " + kind.name + ": a dot product of " + std::to_string(n));
        }
    }
}

void time_writes(ggml_type type, bool side, std::mt19937 & random) {
    const int64_t n = 128;
    const int n_rows = 64;
    const values rows = random_row(n * n_rows, KINDS[0], random);
    bytes blocks(ggml_row_size(type, n) * n_rows);
    const ggml_from_float_t from_float = CPU_FUNCTION(kvtuner_from_float)(type, side);
    double best = 1e9;
    for (int repetition = 0; repetition < 200; ++repetition) {
        const auto start = std::chrono::steady_clock::now();
        for (int row = 0; row < n_rows; ++row) {
            from_float(rows.data() + row * n, blocks.data() + row * ggml_row_size(type, n), n);
        }
        const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
        best = std::min(best, time.count() / n_rows);
    }
    printf("%-13s %6.1f ns to write a row of %d\n", text(type, side).c_str(), best, (int)n);
}

}  // namespace

int main(int argc, char ** argv) {
    printf("%s\n", cpu_library());
    std::mt19937 random(1);
    test_layout();
    test_sides(random);
    for (const ggml_type type : { GGML_TYPE_Q2_NL, GGML_TYPE_Q3_NL }) {
        test_dot(type, random);
        for (const bool side : SIDES) {
            test_blocks(type, side, random);
            test_error(type, side, type == GGML_TYPE_Q2_NL ? 0.11748 : 0.03454, random);
        }
    }
    test_same_everywhere(GGML_TYPE_Q2_NL, K, 0xb8fbfd8e7deb5b7bu);
    test_same_everywhere(GGML_TYPE_Q2_NL, V, 0xa593a217da811b26u);
    test_same_everywhere(GGML_TYPE_Q3_NL, K, 0xa23ceb361db0b37bu);
    test_same_everywhere(GGML_TYPE_Q3_NL, V, 0x95c04b8d3a5caa1fu);
    if (argc > 1 && strcmp(argv[1], "--time") == 0) {
        for (const ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q3_NL, GGML_TYPE_Q2_NL }) {
            time_writes(type, K, random);
            time_writes(type, V, random);
        }
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
