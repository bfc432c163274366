// Rows of random bits as the readers of the CPU give them, and as the base converts them, against kvtuner-decode.h, bit
// for bit: each cache type, row by row and column by column, any number of tokens and of blocks.

#include "cpu_backend.h"
#include "kvtuner-lowbit.h"
#include "kvtuner-rows.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"
#include "ggml-impl.h"
#include "kvtuner-decode.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t N_BLOCK = 3, MOST_TOKENS = 35, PADDED = 48;
constexpr float UNTOUCHED = 12345;

int failures = 0;
std::mt19937 random_bits(1);

// blocks whose offset is a member beside the scale
template <typename BLOCK>
constexpr bool HAS_OFFSET = std::is_same_v<BLOCK, block_q4_1> || std::is_same_v<BLOCK, block_q5_1>;

ggml_half random_half() {
    return ggml_fp32_to_fp16(std::uniform_real_distribution<float>(-2, 2)(random_bits));
}

template <typename BLOCK>
BLOCK random_block() {
    BLOCK block;
    for (size_t i = 0; i < sizeof(block); ++i) {
        ((uint8_t *)&block)[i] = (uint8_t)random_bits();
    }
    block.d = random_half();
    if constexpr (HAS_OFFSET<BLOCK>) {
        block.m = random_half();
    }
    return block;
}

// d * level + m, rounded once or twice
template <typename BLOCK>
float value_of(const BLOCK & block, int j, bool rounds_once) {
    const float level = (float)kvtuner_level(block, j), d = ggml_fp16_to_fp32(block.d);
    if constexpr (HAS_OFFSET<BLOCK>) {
        const float m = ggml_fp16_to_fp32(block.m);
        const volatile float product = d * level;
        return rounds_once ? fmaf(d, level, m) : product + m;
    }
    return d * level;
}

void expect(float found, float wanted, const char * name, const char * what, int64_t token, int64_t i) {
    if (memcmp(&found, &wanted, sizeof(float)) != 0 && ++failures < 20) {
        printf("%s, %s: value %d of token %d is %.9g, not %.9g\n", name, what, (int)i, (int)token, found, wanted);
    }
}

// rows as [token][value], wanted by the readers and by the base
struct wanted_rows {
    std::vector<float> by_reader, by_base;
};

void check(ggml_type type, const char * rows, int64_t n_value, int64_t n_token, const wanted_rows & wanted) {
    const char * name = ggml_type_name(type);
    const kvtuner::row_reader * reader = CPU_FUNCTION(kvtuner_row_reader_of)(type);
    const int64_t n_bytes = (int64_t)ggml_row_size(type, n_value), wide = n_value + 5;
    const kvtuner::row_range range = { rows, n_bytes, n_token, n_value, n_bytes };
    std::vector<float> by_row(n_token * wide, UNTOUCHED), by_column(n_value * PADDED), by_base(n_value);
    reader->rows(range, by_row.data(), wide);
    reader->columns(range, by_column.data(), PADDED);
    for (int64_t t = 0; t < n_token; ++t) {
        if (type == GGML_TYPE_F32) {
            memcpy(by_base.data(), rows + t * n_bytes, n_bytes);
        } else {
            ggml_get_type_traits(type)->to_float(rows + t * n_bytes, by_base.data(), n_value);
        }
        for (int64_t i = 0; i < n_value; ++i) {
            const float value = wanted.by_reader[t * n_value + i];
            expect(by_row[t * wide + i], value, name, "row", t, i);
            expect(by_column[i * PADDED + t], value, name, "column", t, i);
            expect(by_base[i], wanted.by_base[t * n_value + i], name, "base", t, i);
        }
        for (int64_t i = n_value; i < wide; ++i) {
            expect(by_row[t * wide + i], UNTOUCHED, name, "padding", t, i);
        }
    }
}

bool machine_rounds_once() {
#if defined(__aarch64__)
    return true;
#else
    return CPU_FUNCTION(ggml_cpu_has_fma)();
#endif
}

template <typename BLOCK>
void check_blocks(ggml_type type, int size) {
    const bool rounds_once = machine_rounds_once();
    for (int64_t n_token = 1; n_token <= MOST_TOKENS; ++n_token) {
        std::vector<BLOCK> blocks;
        wanted_rows wanted;
        for (int64_t b = 0; b < n_token * N_BLOCK; ++b) {
            blocks.push_back(random_block<BLOCK>());
            for (int j = 0; j < size; ++j) {
                wanted.by_reader.push_back(value_of(blocks.back(), j, rounds_once));
                wanted.by_base.push_back(value_of(blocks.back(), j, false));
            }
        }
        check(type, (const char *)blocks.data(), N_BLOCK * size, n_token, wanted);
    }
}

float number_of(ggml_type type, const uint8_t * x) {
    uint32_t bits = 0;
    memcpy(&bits, x, ggml_type_size(type));
    if (type == GGML_TYPE_F16) {
        return ggml_fp16_to_fp32((ggml_fp16_t)bits);
    }
    bits <<= type == GGML_TYPE_BF16 ? 16 : 0;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

void check_numbers(ggml_type type) {
    const int64_t size = (int64_t)ggml_type_size(type);
    for (const int64_t n_value : { 40, 72, 64, 128 }) {
        for (int64_t n_token = 1; n_token <= MOST_TOKENS; ++n_token) {
            std::vector<uint8_t> bytes(n_token * n_value * size);
            wanted_rows wanted;
            for (int64_t i = 0; i < n_token * n_value; ++i) {
                do {  // a NaN has many bits that mean the same
                    for (int64_t j = 0; j < size; ++j) {
                        bytes[i * size + j] = (uint8_t)random_bits();
                    }
                } while (std::isnan(number_of(type, &bytes[i * size])));
                wanted.by_reader.push_back(number_of(type, &bytes[i * size]));
            }
            wanted.by_base = wanted.by_reader;
            check(type, (const char *)bytes.data(), n_value, n_token, wanted);
        }
    }
}

}  // namespace

int main() {
    printf("%s\n", cpu_library());
#define KVTUNER_NUMBER(TYPE, name) check_numbers(GGML_TYPE_##TYPE);
#define KVTUNER_BLOCK(TYPE, name, size) check_blocks<block_##name>(GGML_TYPE_##TYPE, size);
#include "kvtuner-formats.def"
    printf("%d failures\n", failures);
    return failures != 0;
}
