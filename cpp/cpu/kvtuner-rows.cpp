#include "kvtuner-rows.h"

#include "kvtuner-block-levels.h"

#include <algorithm>
#include <cstring>

namespace kvtuner {

namespace {

constexpr int64_t AHEAD = 64;  // rows that are asked for before they are read

void prefetch(const row_range & from, int64_t i) {
    if (!from.rows) {
        prefetch_row(from, i + AHEAD);
    }
}

// Blocks

template <typename BLOCK>
vec value_of(vec level, vec scale, vec offset) {
    return HAS_OFFSET<BLOCK> ? multiply_add(level, scale, offset) : level * scale;
}

template <typename BLOCK>
void read_block(const BLOCK & block, int size, float * values) {
    const vec scale = splat(GGML_CPU_FP16_TO_FP32(block.d));
    vec offset = {};
    if constexpr (HAS_OFFSET<BLOCK>) {
        offset = splat(GGML_CPU_FP16_TO_FP32(block.m));
    }
    for (int j = 0; j < size / WIDE; ++j) {
        alignas(64) int8_t found[WIDE];
        store(found, levels_of(block, j));
        for (int i = 0; i < WIDE; i += LANES) {
            store(values + j * WIDE + i, value_of<BLOCK>(load_levels(found + i), scale, offset));
        }
    }
}

template <typename BLOCK, int SIZE>
void read_block_rows(const row_range & from, float * values, int64_t wide) {
    for (int64_t i = 0; i < from.n; ++i, values += wide) {
        prefetch(from, i);
        const BLOCK * block = (const BLOCK *)row_at(from, i);
        for (int64_t j = 0; j < from.n_value / SIZE; ++j) {
            read_block(block[j], SIZE, values + j * SIZE);
        }
    }
}

// columns of levels of N_ROW tokens times the scales of these, `wide` values apart
template <typename BLOCK>
void put_columns(const int8_t * columns, row_floats scales, row_floats offsets, float * values, int64_t wide) {
    constexpr int IN_LANE = LANE / N_ROW;  // columns
    for (int t = 0; t < N_ROW; t += LANES) {
        const vec scale = load<vec>((const float *)&scales + t), offset = load<vec>((const float *)&offsets + t);
        for (int k = 0; k < N_ROW; ++k) {
            for (int i = 0; i < WIDE / N_ROW; ++i) {
                float * to = values + (i / IN_LANE * LANE + k * IN_LANE + i % IN_LANE) * wide + t;
                store(to, value_of<BLOCK>(load_levels(columns + k * WIDE + i * N_ROW + t), scale, offset));
            }
        }
    }
}

// the blocks that N_ROW tokens have at the same place
template <typename BLOCK, int SIZE>
void read_block_columns(const BLOCK * const * blocks, float * values, int64_t wide) {
    using all = std::make_index_sequence<N_ROW>;
    const row_floats scales = halves_of(blocks, 0, all());
    const row_floats offsets = HAS_OFFSET<BLOCK> ? halves_of(blocks, 1, all()) : row_floats{};
    for (int j = 0; j < SIZE / WIDE; ++j) {
        alignas(64) int8_t columns[WIDE * N_ROW];
        wide_levels rows[N_ROW];
        for (int t = 0; t < N_ROW; ++t) {
            rows[t] = levels_of(*blocks[t], j);
        }
        transpose<int8_t, WIDE>(rows, columns);
        put_columns<BLOCK>(columns, scales, offsets, values + j * WIDE * wide, wide);
    }
}

// row t and those after it; those behind the last are the last again
template <typename T>
void find_rows(const row_range & from, int64_t t, const T ** rows) {
    const int64_t n = std::min<int64_t>(N_ROW, from.n - t);
    for (int64_t i = 0; i < n; ++i) {
        prefetch(from, t + i);
        rows[i] = (const T *)row_at(from, t + i);
    }
    for (int64_t i = n; i < N_ROW; ++i) {
        rows[i] = rows[n - 1];
    }
}

template <typename BLOCK, int SIZE>
void read_all_block_columns(const row_range & from, float * values, int64_t wide) {
    const BLOCK * blocks[N_ROW];
    for (int64_t t = 0; t < from.n; t += N_ROW) {
        find_rows(from, t, blocks);
        for (int64_t j = 0; j < from.n_value; j += SIZE) {
            read_block_columns<BLOCK, SIZE>(blocks, values + j * wide + t, wide);
            for (const BLOCK *& block : blocks) {
                ++block;
            }
        }
    }
}

// Plain numbers, by the integers that hold them

struct f32 {
    using bits = uint32_t;

    static void convert(const bits * x, float * values, int64_t n) {
        memcpy(values, x, n * sizeof(float));
    }
};

struct f16 {
    using bits = uint16_t;

    static void convert(const bits * x, float * values, int64_t n) {
        ggml_cpu_fp16_to_fp32(x, values, n);
    }
};

struct bf16 {
    using bits = uint16_t;

    static void convert(const bits * x, float * values, int64_t n) {
        ggml_cpu_bf16_to_fp32((const ggml_bf16_t *)x, values, n);
    }
};

template <typename T>
void read_number_rows(const row_range & from, float * values, int64_t wide) {
    for (int64_t i = 0; i < from.n; ++i, values += wide) {
        prefetch(from, i);
        T::convert((const typename T::bits *)row_at(from, i), values, from.n_value);
    }
}

// the n values, a lane or less, that N_ROW tokens have at the same place
template <typename T, typename E = typename T::bits>
void read_number_columns(const E * const * numbers, int64_t n, float * values, int64_t wide) {
    constexpr int N = LANE / sizeof(E);
    row_part<E, LANE> rows[N_ROW] = {};
    for (int t = 0; t < N_ROW; ++t) {
        if (n == N) {
            rows[t] = load<row_part<E, LANE>>(numbers[t]);
        } else {
            memcpy(&rows[t], numbers[t], n * sizeof(E));
        }
    }
    alignas(64) E columns[N * N_ROW];
    alignas(64) float floats[N * N_ROW];
    transpose<E, LANE>(rows, columns);
    T::convert(columns, floats, N * N_ROW);
    for (int64_t i = 0; i < n; ++i) {
        memcpy(values + i * wide, floats + i * N_ROW, N_ROW * sizeof(float));
    }
}

template <typename T>
void read_all_number_columns(const row_range & from, float * values, int64_t wide) {
    using bits = typename T::bits;
    constexpr int64_t N = LANE / sizeof(bits);
    const bits * numbers[N_ROW];
    for (int64_t t = 0; t < from.n; t += N_ROW) {
        find_rows(from, t, numbers);
        for (int64_t j = 0; j < from.n_value; j += N) {
            read_number_columns<T>(numbers, std::min(N, from.n_value - j), values + j * wide + t, wide);
            for (const bits *& number : numbers) {
                number += N;
            }
        }
    }
}

template <typename BLOCK, int SIZE>
constexpr row_reader of_blocks = { read_block_rows<BLOCK, SIZE>, read_all_block_columns<BLOCK, SIZE> };

template <typename T>
constexpr row_reader of_numbers = { read_number_rows<T>, read_all_number_columns<T> };

}  // namespace

}  // namespace kvtuner

const kvtuner::row_reader * kvtuner_row_reader_of(ggml_type type) {
    using namespace kvtuner;
    switch (type) {
#define KVTUNER_NUMBER(TYPE, name) \
    case GGML_TYPE_##TYPE:         \
        return &of_numbers<name>;
#define KVTUNER_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:              \
        return &of_blocks<block_##name, size>;
#include "kvtuner-formats.def"
        default:
            return nullptr;
    }
}
