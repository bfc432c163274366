#include "kvtuner-cpu-write.h"

#include "kvtuner-hadamard.h"
#include "kvtuner-lowbit.h"
#include "kvtuner-mark.h"
#include "kvtuner-writes.h"

#include "ggml-cpu.h"
#include "ggml-cpu/ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace kvtuner {

namespace {

constexpr int64_t PIECE = 64;       // values that a thread takes at least
constexpr int64_t LONGEST = 1024;   // and at most
constexpr size_t KEPT_GRAPHS = 64;  // those of a model whose layers are on several devices

bool is_rotation(int64_t n) {
    return n >= LANES && n <= LONGEST && (n & (n - 1)) == 0;
}

// values of a row that a thread takes at once: whole rotations and whole blocks
int64_t piece_length(const kvtuner_write & write) {
    int64_t unit = write.rotation;
    for (const ggml_tensor * cache : write.stores) {
        unit = std::max(unit, ggml_blck_size(cache->type));
    }
    const int64_t piece = std::max(unit, PIECE);
    return write.stores[0]->ne[0] % piece == 0 ? piece : unit;
}

bool can_store(const kvtuner_write & write, const ggml_tensor * cache) {
    const int64_t block = ggml_blck_size(cache->type);
    const bool is_whole = write.rotation == 0 || (is_rotation(write.rotation) && write.rotation % block == 0);
    return is_whole && block <= LONGEST && cache->ne[0] % piece_length(write) == 0 && kvtuner_cpu_conversion(cache);
}

bool can_do(const kvtuner_write & write) {
    return std::all_of(write.stores.begin(), write.stores.end(),
                       [&](const ggml_tensor * cache) { return can_store(write, cache); });
}

// n values, from `first` on, of the center of row `row`
const float * center_of(const kvtuner_write & write, int64_t row, int64_t first, int64_t n, float * converted) {
    if (!write.blocks) {
        return (const float *)write.center->data + first;
    }
    const int32_t block = ((const int32_t *)write.blocks->data)[row];
    GGML_ASSERT(block >= 0 && block < write.center->ne[1]);
    const char * values = (const char *)write.center->data + block * write.center->nb[1];
    ggml_cpu_fp16_to_fp32((const ggml_fp16_t *)values + first, converted, n);
    return converted;
}

// x = a row of n values, of which `rotation` at a time are rotated; 0: none
void rotate(const float * row, int64_t rotation, int64_t n, float * x) {
    const float scale = rotation ? 1 / sqrtf((float)rotation) : 1;
    for (int64_t i = 0; i < n; ++i) {
        x[i] = row[i] * scale;
    }
    for (int64_t i = 0; rotation && i < n; i += rotation) {
        transform(x + i, rotation);
    }
}

// x = n values, from `first` on, of row `row` of those that are written: scaled and rotated
void rotate_piece(const kvtuner_write & write, float * x, int64_t row, int64_t first, int64_t n) {
    const float * values = (const float *)((const char *)write.rows->data + row * write.rows_stride) + first;
    if (write.scale) {
        const float * factors = (const float *)write.scale->data + first;
        for (int64_t i = 0; i < n; ++i) {
            x[i] = values[i] * factors[i];
        }
        values = x;
    }
    rotate(values, write.rotation, n, x);
}

// takes its center off n values, from `first` on, of row `row` of those that are written
void center_piece(const kvtuner_write & write, float * x, int64_t row, int64_t first, int64_t n) {
    alignas(64) float converted[LONGEST];
    const float * center = center_of(write, row, first, n, converted);
    for (int64_t i = 0; i < n; ++i) {
        x[i] -= center[i];
    }
}

// stores n values, from `first` on, of row `row` of those that are written
void store_piece(const ggml_tensor * cache, const float * x, int64_t row, int64_t first, int64_t n) {
    const int64_t cell = ((const int64_t *)cache->src[1]->data)[row];
    GGML_ASSERT(cell >= 0 && cell < cache->ne[1]);
    kvtuner_cpu_conversion(cache)(x, (char *)cache->data + cell * cache->nb[1] + ggml_row_size(cache->type, first), n);
}

void run(const kvtuner_write & write, int ith, int nth) {
    const ggml_tensor * cache = write.stores[0];
    const int64_t length = piece_length(write), pieces = cache->ne[0] / length;
    const int64_t n = cache->src[0]->ne[1] * pieces;
    alignas(64) float x[LONGEST];
    for (int64_t i = n * ith / nth; i < n * (ith + 1) / nth; ++i) {
        const int64_t row = i / pieces, first = i % pieces * length;
        rotate_piece(write, x, row, first, length);
        if (write.center) {
            center_piece(write, x, row, first, length);
        }
        for (const ggml_tensor * set_rows : write.stores) {
            store_piece(set_rows, x, row, first, length);
        }
    }
}

}  // namespace

}  // namespace kvtuner

const kvtuner_writes * kvtuner_cpu_writes(const ggml_cgraph * graph) {
    static thread_local std::unordered_map<uint64_t, kvtuner_writes> kept;
    const auto it = kept.find(graph->uid);
    if (it != kept.end() && graph->uid != 0) {
        return it->second.unless_none();
    }
    if (kept.size() >= kvtuner::KEPT_GRAPHS) {
        kept.clear();
    }
    return kept.insert_or_assign(graph->uid, kvtuner_writes(*graph, kvtuner::can_do, true)).first->second.unless_none();
}

bool kvtuner_cpu_write(const kvtuner_writes * writes, const ggml_compute_params * params, int i) {
    if (!writes || !writes->covers(i)) {
        return false;
    }
    if (const kvtuner_write * write = writes->starting_with(i)) {
        kvtuner::run(*write, params->ith, params->nth);
    }
    return true;
}

bool kvtuner_cpu_goes_on(const kvtuner_writes * writes, int i) {
    return writes && writes->goes_on_after(i);
}

ggml_from_float_t kvtuner_cpu_conversion(const ggml_tensor * set_rows) {
    return kvtuner_from_float(set_rows->type, kvtuner_is_of_values(set_rows));
}

bool kvtuner_cpu_rotate(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * values = node->src[1];
    const int64_t n = values->ne[0];
    if (values->type != GGML_TYPE_F32 || !ggml_is_contiguous(values) || !ggml_is_contiguous(node) ||
        !kvtuner::is_rotation(n)) {
        return false;
    }
    const int64_t n_row = ggml_nrows(values);
    for (int64_t r = n_row * params->ith / params->nth; r < n_row * (params->ith + 1) / params->nth; ++r) {
        kvtuner::rotate((const float *)values->data + r * n, n, n, (float *)node->data + r * n);
    }
    return true;
}
