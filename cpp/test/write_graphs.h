// Graphs that write into a cache, as those of models do, and what is found in them.
#pragma once

#include "kvtuner-writes.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <string>
#include <vector>

struct shape {
    int64_t head_size = 128;
    int64_t n_head = 2;
    int64_t n_tokens = 5;
    int64_t rotation = 128;  // 0: none
    bool center = true;
    bool wide = false;  // heads lie in a row that holds more
    bool of_values = false;
    bool has_exact = false;  // the row is stored beside the cache, too
    ggml_type exact_type = GGML_TYPE_F16;
    bool has_table = false;  // of centers, one for each block of positions
    bool has_scale = false;
    enum { NO_ROPE, ROPE, ROPE_APART, ROPE_OF_HALF } rope = NO_ROPE;  // of the rows, and of queries that no cache takes
    ggml_type type = GGML_TYPE_Q8_0;
};

// one write, as the graph of a model has it
struct writing {
    ggml_tensor *base, *scale, *center, *blocks, *matrix, *indices, *cache;  // center: or a table of them
    ggml_tensor *scaled, *centered, *rotated, *stored;
    ggml_tensor *exact, *exact_centered, *stored_exact;
    ggml_tensor *positions, *factors, *turned, *queries, *turned_queries;
};

constexpr int64_t N_CELLS = 32;
constexpr int64_t N_BLOCKS = 3;
constexpr size_t N_NODES = 64;

extern int failures;

void expect(bool is_right, const std::string & what);

ggml_tensor * rotate(ggml_context * ctx, ggml_tensor * x, ggml_tensor * matrix);

writing make_writing(ggml_context * ctx, const shape & s, ggml_type index_type = GGML_TYPE_I64);

ggml_context_ptr new_context();

ggml_cgraph * graph_of(ggml_context * ctx, const std::vector<ggml_tensor *> & last);

bool any(const kvtuner_write &);

// what is found: "", "center", "rotation" or "rotation center" for each write, apart by commas, "scale" before one that
// multiplies, and "x2" after one that is also stored beside the cache
std::string found(const ggml_cgraph * graph, bool (*can_do)(const kvtuner_write &) = any, bool with_scale = true);

// the parts of the test beside those of finding: what the kernels of a device store, of all types and of ours, and what
// is kept of other graphs
void test_on(const char * device);
void test_lowbit_on(ggml_backend_t backend);
void test_other_graphs();
