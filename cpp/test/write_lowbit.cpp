// Rows in q2_nl and q3_nl on a device: stored as the reference stores them, bit for bit, and read as they are stored.

#include "hostile_rows.h"
#include "kvtuner-lowbit.h"
#include "kvtuner-mark.h"
#include "write_graphs.h"

#include "ggml-alloc.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr int64_t WIDTH = 3 * QK_NL;
constexpr int64_t N_ROWS = N_CELLS - 3;

// what a device makes of rows
struct made {
    ggml_tensor *rows, *indices, *cells, *cache;
    ggml_tensor *keys, *values;     // in cells of a cache
    ggml_tensor * copied;           // as keys
    ggml_tensor *read, *converted;  // f32, of rows of `cells` and of all of `cache`

    made(ggml_context * ctx, ggml_type type) {
        const auto rows_in = [&](ggml_type t, int64_t n) { return ggml_new_tensor_2d(ctx, t, WIDTH, n); };
        rows = rows_in(GGML_TYPE_F32, N_ROWS);
        indices = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, N_ROWS);
        cells = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, N_ROWS);
        cache = rows_in(type, N_CELLS);
        keys = ggml_set_rows(ctx, rows_in(type, N_CELLS), rows, indices);
        values = kvtuner_mark_values(ggml_set_rows(ctx, rows_in(type, N_CELLS), rows, indices));
        copied = ggml_cpy(ctx, rows, rows_in(type, N_ROWS));
        read = ggml_get_rows(ctx, cache, cells);
        converted = ggml_cpy(ctx, cache, rows_in(GGML_TYPE_F32, N_CELLS));
    }

    std::vector<ggml_tensor *> results() const {
        return { keys, values, copied, read, converted };
    }
};

int64_t cell_of(int64_t row) {
    return N_CELLS - 1 - row;
}

std::vector<uint8_t> reference(ggml_type type, bool of_values, const std::vector<float> & rows) {
    const size_t row_size = ggml_row_size(type, WIDTH);
    std::vector<uint8_t> cells(N_CELLS * row_size);
    for (int64_t i = 0; i < N_ROWS; ++i) {
        kvtuner_from_float_ref(type, of_values)(&rows[i * WIDTH], &cells[cell_of(i) * row_size], WIDTH);
    }
    return cells;
}

std::vector<uint8_t> bytes_of(const ggml_tensor * tensor) {
    std::vector<uint8_t> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

// rows of a cache, from one to the last in the order of cells, in the order of rows
std::vector<uint8_t> in_order(const std::vector<uint8_t> & cells, size_t row_size) {
    std::vector<uint8_t> rows(N_ROWS * row_size);
    for (int64_t i = 0; i < N_ROWS; ++i) {
        memcpy(&rows[i * row_size], &cells[cell_of(i) * row_size], row_size);
    }
    return rows;
}

void set_inputs(const made & m, const std::vector<float> & rows, const std::vector<uint8_t> & cache) {
    std::vector<int64_t> indices(N_ROWS);
    std::vector<int32_t> cells(N_ROWS);
    for (int64_t i = 0; i < N_ROWS; ++i) {
        indices[i] = cells[i] = (int32_t)cell_of(i);
    }
    ggml_backend_tensor_set(m.rows, rows.data(), 0, ggml_nbytes(m.rows));
    ggml_backend_tensor_set(m.indices, indices.data(), 0, ggml_nbytes(m.indices));
    ggml_backend_tensor_set(m.cells, cells.data(), 0, ggml_nbytes(m.cells));
    ggml_backend_tensor_set(m.cache, cache.data(), 0, ggml_nbytes(m.cache));
}

void test_rows(ggml_backend_t backend, ggml_type type, const std::string & kind, const std::vector<float> & rows) {
    ggml_context_ptr ctx = new_context();
    const made m(ctx.get(), type);
    for (const ggml_tensor * result : m.results()) {
        expect(ggml_backend_supports_op(backend, result),
               std::string(ggml_type_name(type)) + ": " + ggml_op_desc(result) + " is not supported");
    }
    ggml_cgraph * graph = graph_of(ctx.get(), m.results());
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    ggml_backend_buffer_clear(buffer.get(), 0);
    const std::vector<uint8_t> keys = reference(type, false, rows), values = reference(type, true, rows);
    set_inputs(m, rows, values);
    expect(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "computed");

    std::vector<float> floats(N_CELLS * WIDTH);
    ggml_get_type_traits(type)->to_float(values.data(), floats.data(), (int64_t)floats.size());
    std::vector<uint8_t> converted(floats.size() * sizeof(float));
    memcpy(converted.data(), floats.data(), converted.size());
    const auto check = [&](const ggml_tensor * result, const std::vector<uint8_t> & wanted, const char * what) {
        const std::vector<uint8_t> got = bytes_of(result);
        const size_t at = std::mismatch(got.begin(), got.end(), wanted.begin()).first - got.begin();
        const std::string difference = at == got.size()
                                               ? ""
                                               : ": byte " + std::to_string(at) + " is " + std::to_string(got[at]) +
                                                         ", not " + std::to_string(wanted[at]);
        expect(got == wanted, std::string(ggml_type_name(type)) + ", " + kind + ": " + what + difference);
    };
    check(m.keys, keys, "keys");
    check(m.values, values, "values");
    check(m.copied, in_order(keys, ggml_row_size(type, WIDTH)), "a copy");
    check(m.read, in_order(converted, WIDTH * sizeof(float)), "rows that are read");
    check(m.converted, converted, "a copy in f32");
}

}  // namespace

void test_lowbit_on(ggml_backend_t backend) {
    std::mt19937 random(std::random_device{}());
    for (const ggml_type type : { GGML_TYPE_Q2_NL, GGML_TYPE_Q3_NL }) {
        for (const auto & [kind, rows] : hostile_rows(N_ROWS * WIDTH, random)) {
            test_rows(backend, type, kind, rows);
        }
    }
}
