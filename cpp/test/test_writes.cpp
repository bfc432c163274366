// Which writes into a cache one kernel may do, and whether it stores what the steps store: on the CPU, or on the device
// that is named.

#include "cpu_backend.h"
#include "kvtuner-formats.h"
#include "kvtuner-writes.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <string>
#include <vector>

static size_t n_allocated = 0;

void * operator new(size_t size) {
    ++n_allocated;
    if (void * memory = malloc(size)) {
        return memory;
    }
    throw std::bad_alloc();
}

void operator delete(void * memory) noexcept {
    free(memory);
}

void operator delete(void * memory, size_t) noexcept {
    free(memory);
}

namespace {

int failures = 0;

void expect(bool is_right, const std::string & what) {
    if (!is_right) {
        printf("%s\n", what.c_str());
        ++failures;
    }
}

struct shape {
    int64_t head_size = 128;
    int64_t n_head = 2;
    int64_t n_tokens = 5;
    int64_t rotation = 128;  // 0: none
    bool center = true;
    bool wide = false;  // heads lie in a row that holds more
    ggml_type type = GGML_TYPE_Q8_0;
};

// one write, as the graph of a model has it
struct writing {
    ggml_tensor *base, *center, *matrix, *indices, *cache;
    ggml_tensor *centered, *rotated, *stored;
};

constexpr int64_t N_CELLS = 32;
constexpr size_t N_NODES = 64;

ggml_tensor * rotate(ggml_context * ctx, ggml_tensor * x, ggml_tensor * matrix) {
    const int64_t n = matrix->ne[0];
    ggml_tensor * flat = ggml_reshape_2d(ctx, x, n, ggml_nelements(x) / n);
    ggml_tensor * product = ggml_mul_mat(ctx, matrix, flat);
    ggml_mul_mat_set_hint(product, GGML_HINT_SRC0_IS_HADAMARD);
    return ggml_reshape_4d(ctx, product, x->ne[0], x->ne[1], x->ne[2], x->ne[3]);
}

writing make(ggml_context * ctx, const shape & s, ggml_type index_type = GGML_TYPE_I64) {
    writing w = {};
    const int64_t width = s.head_size * s.n_head;
    w.base = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.wide ? 3 * width : width, s.n_tokens);
    w.cache = ggml_new_tensor_2d(ctx, s.type, width, N_CELLS);
    w.indices = ggml_new_tensor_1d(ctx, index_type, s.n_tokens);
    const size_t head_bytes = s.head_size * sizeof(float);
    ggml_tensor * x = ggml_view_3d(ctx, w.base, s.head_size, s.n_head, s.n_tokens, head_bytes, w.base->nb[1],
                                   s.wide ? width * sizeof(float) : 0);
    if (s.center) {
        w.center = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.head_size, s.n_head);
        x = w.centered = ggml_sub(ctx, x, w.center);
    } else if (s.wide) {
        x = ggml_cont(ctx, x);
    }
    if (s.rotation) {
        w.matrix = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, s.rotation, s.rotation);
        x = w.rotated = rotate(ctx, x, w.matrix);
    }
    w.stored = ggml_set_rows(ctx, w.cache, ggml_view_2d(ctx, x, width, s.n_tokens, x->nb[2], 0), w.indices);
    return w;
}

ggml_context_ptr new_context() {
    return ggml_context_ptr(
            ggml_init({ 4 * ggml_graph_overhead_custom(N_NODES, false) + N_NODES * ggml_tensor_overhead(), nullptr,
                        /*.no_alloc =*/true }));
}

ggml_cgraph * graph_of(ggml_context * ctx, const std::vector<ggml_tensor *> & last) {
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, N_NODES, false);
    for (ggml_tensor * tensor : last) {
        ggml_build_forward_expand(graph, tensor);
    }
    return graph;
}

bool any(const kvtuner_write &) {
    return true;
}

bool none(const kvtuner_write &) {
    return false;
}

int position_of(const ggml_cgraph * graph, const ggml_tensor * node) {
    return (int)(std::find(graph->nodes, graph->nodes + graph->n_nodes, node) - graph->nodes);
}

// what is found: "", "center", "rotation" or "center rotation" for each write, apart by commas
std::string found(const ggml_cgraph * graph, bool (*can_do)(const kvtuner_write &) = any) {
    const kvtuner_writes writes(*graph, can_do);
    std::string text;
    size_t n_covered = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        n_covered += writes.covers(i);
        if (const kvtuner_write * write = writes.starting_with(i)) {
            text += text.empty() ? "" : ", ";
            text += write->center ? write->rotation ? "center rotation" : "center" : "rotation";
            expect(writes.covers(i) && writes.covers(position_of(graph, write->set_rows)),
                   "first and last step are covered");
        }
    }
    expect((n_covered == 0) == text.empty(), "nothing is covered without a write");
    return text;
}

void expect_found(const char * what, const ggml_cgraph * graph, const std::string & wanted,
                  bool (*can_do)(const kvtuner_write &) = any) {
    const std::string text = found(graph, can_do);
    expect(text == wanted, std::string(what) + ": found '" + text + "', wanted '" + wanted + "'");
}

void test_steps() {
    for (const bool center : { false, true }) {
        for (const int64_t rotation : { 0, 64 }) {
            ggml_context_ptr ctx = new_context();
            shape s;
            s.center = center;
            s.rotation = rotation;
            const std::string wanted = center ? rotation ? "center rotation" : "center" : rotation ? "rotation" : "";
            ggml_cgraph * graph = graph_of(ctx.get(), { make(ctx.get(), s).stored });
            expect_found("steps", graph, wanted);
            expect_found("a back end that cannot", graph, "", none);
        }
    }
}

// keys and values as a graph has them: the values are rotated before the keys and stored after them
void test_order() {
    ggml_context_ptr ctx = new_context();
    shape s;
    const writing k = make(ctx.get(), s);
    s.center = false;
    const writing v = make(ctx.get(), s);
    expect_found("keys and values", graph_of(ctx.get(), { v.rotated, k.rotated, k.stored, v.stored }),
                 "rotation, center rotation");
    ggml_cgraph * graph = graph_of(ctx.get(), { k.stored });
    ggml_cgraph last = ggml_graph_view(graph, graph->n_nodes - 1, graph->n_nodes);
    expect_found("rotated in another graph", &last, "");
}

void test_other_readers() {
    const auto with = [](void (*change)(ggml_context *, writing &, std::vector<ggml_tensor *> &)) {
        static std::vector<ggml_context_ptr> kept;
        kept.push_back(new_context());
        ggml_context * ctx = kept.back().get();
        writing w = make(ctx, shape());
        std::vector<ggml_tensor *> last = { w.stored };
        change(ctx, w, last);
        return graph_of(ctx, last);
    };
    expect_found("centered values are read",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last.push_back(ggml_sqr(ctx, w.centered));
                 }),
                 "rotation");
    expect_found("rotated values are read",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last.push_back(ggml_sqr(ctx, w.rotated));
                 }),
                 "");
    expect_found("centered values are an output",
                 with([](ggml_context *, writing & w, std::vector<ggml_tensor *> &) { ggml_set_output(w.centered); }),
                 "rotation");
    expect_found("the cache is read between",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last = { w.rotated, ggml_cast(ctx, w.cache, GGML_TYPE_F32), w.stored };
                 }),
                 "");
    expect_found("the cache is read after",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last.push_back(ggml_cast(ctx, w.cache, GGML_TYPE_F32));
                 }),
                 "center rotation");
}

void test_other_shapes() {
    ggml_context_ptr ctx = new_context();
    expect_found("indices of 32 bits", graph_of(ctx.get(), { make(ctx.get(), shape(), GGML_TYPE_I32).stored }), "");

    const shape s;
    ggml_tensor * x = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, s.head_size, s.n_head, s.n_tokens);
    ggml_tensor * matrix = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.rotation, s.rotation);
    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), s.type, s.head_size * s.n_head, N_CELLS);
    ggml_tensor * indices = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, s.n_tokens);
    const auto store = [&](ggml_tensor * values, int64_t n, size_t offset) {
        return graph_of(
                ctx.get(),
                { ggml_set_rows(ctx.get(), cache,
                                ggml_view_2d(ctx.get(), values, s.head_size * s.n_head, n, values->nb[2], offset),
                                ggml_view_1d(ctx.get(), indices, n, 0)) });
    };
    ggml_tensor * of_each_token = ggml_sub(ctx.get(), x, ggml_dup_tensor(ctx.get(), x));
    expect_found("a part of the tokens", store(rotate(ctx.get(), x, matrix), s.n_tokens - 1, x->nb[2]), "");
    expect_found("a vector of each token", store(of_each_token, s.n_tokens, 0), "");
}

// after which of the steps of a graph no thread waits: a letter for each that does something, small where they wait
std::string waits(const ggml_cgraph * graph) {
    const kvtuner_writes writes(*graph, any);
    std::string text;
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * node = graph->nodes[i];
        if (!ggml_op_is_empty(node->op) && (!writes.covers(i) || writes.starting_with(i))) {
            const char letter = writes.starting_with(i) ? 'w' : node->op == GGML_OP_SQR ? 's' : 'o';
            text += writes.goes_on_after(i) ? (char)toupper(letter) : letter;
        }
    }
    return text;
}

void expect_waits(const char * what, const ggml_cgraph * graph, const std::string & wanted) {
    const std::string text = waits(graph);
    expect(text == wanted, std::string(what) + ": waits are '" + text + "', wanted '" + wanted + "'");
}

void test_waits() {
    ggml_context_ptr ctx = new_context();
    const writing k = make(ctx.get(), shape());
    const writing v = make(ctx.get(), shape());
    ggml_tensor * query = ggml_sqr(ctx.get(), k.center);
    expect_waits("two writes", graph_of(ctx.get(), { k.rotated, v.rotated, k.stored, v.stored }), "Ww");
    expect_waits("a query, two writes, a reader",
                 graph_of(ctx.get(), { query, k.rotated, v.rotated, k.stored, v.stored,
                                       ggml_cast(ctx.get(), k.cache, GGML_TYPE_F32) }),
                 "SWwo");
    expect_waits("the cache is read just before",
                 graph_of(ctx.get(), { ggml_cast(ctx.get(), v.cache, GGML_TYPE_F32), k.stored, v.stored }), "Oww");
    ggml_context_ptr other = new_context();
    const writing own = make(other.get(), shape());
    own.centered->src[0] = ggml_sqr(other.get(), own.centered->src[0]);
    expect_waits("values made just before", graph_of(other.get(), { own.stored }), "sw");
}

std::vector<float> hadamard(int64_t n) {
    std::vector<float> matrix(n * n);
    for (int64_t i = 0; i < n * n; ++i) {
        matrix[i] = (__builtin_popcountll((i / n) & (i % n)) % 2 ? -1 : 1) / std::sqrt((float)n);
    }
    return matrix;
}

std::vector<float> random_values(int64_t n, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float & value : values) {
        value = normal(random) * (random() % 16 == 0 ? 20 : 1);
    }
    return values;
}

void fill(ggml_tensor * tensor, const std::vector<float> & values) {
    if (tensor) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
}

// the bytes of the cache after a write; in steps: each step's result is an output, which no kernel may leave out
std::vector<uint8_t> stored_bytes(ggml_backend_t backend, const shape & s, unsigned seed, bool in_steps) {
    ggml_context_ptr ctx = new_context();
    writing w = make(ctx.get(), s);
    for (ggml_tensor * step : { w.centered, w.rotated ? w.rotated->src[0] : nullptr }) {
        if (in_steps && step) {
            ggml_set_output(step);
        }
    }
    ggml_cgraph * graph = graph_of(ctx.get(), { w.stored });
    expect(found(graph).empty() == in_steps, "steps that are outputs stay steps");
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    ggml_backend_buffer_clear(buffer.get(), 0);

    std::mt19937 random(seed);
    fill(w.base, random_values(ggml_nelements(w.base), random));
    fill(w.center, random_values(s.head_size * s.n_head, random));
    fill(w.matrix, hadamard(s.rotation));
    std::vector<int64_t> indices(N_CELLS);
    for (int64_t i = 0; i < N_CELLS; ++i) {
        indices[i] = i * 7 % N_CELLS;
    }
    ggml_backend_tensor_set(w.indices, indices.data(), 0, ggml_nbytes(w.indices));
    expect(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "computed");
    std::vector<uint8_t> bytes(ggml_nbytes(w.cache));
    ggml_backend_tensor_get(w.cache, bytes.data(), 0, bytes.size());
    return bytes;
}

bool can_store(ggml_backend_t backend, ggml_type type) {
    ggml_context_ptr ctx = new_context();
    shape s;
    s.type = type;
    return ggml_backend_supports_op(backend, make(ctx.get(), s).stored);
}

std::vector<shape> shapes() {
    std::vector<shape> all;
    for (const ggml_type type : KVTUNER_CACHE_TYPES) {
        for (const int64_t head_size : { 32, 64, 96, 128, 192, 256, 512 }) {
            for (const int64_t rotation : { 0, 64, 128, 256, 512 }) {
                for (const int64_t n_tokens : { 1, 5, 31 }) {
                    for (const int variant : { 0, 1, 2, 3 }) {
                        shape s;
                        s.head_size = head_size;
                        s.n_head = head_size == 96 ? 1 : 3;
                        s.n_tokens = n_tokens;
                        s.rotation = rotation;
                        s.center = variant & 1;
                        s.wide = variant & 2;
                        s.type = type;
                        if (s.head_size * s.n_head % ggml_blck_size(type) != 0) {
                            continue;
                        }
                        if ((rotation == 0 && s.center) || (rotation != 0 && head_size % rotation == 0)) {
                            all.push_back(s);
                        }
                    }
                }
            }
        }
    }
    return all;
}

void test_on(const char * name) {
    printf("%s\n", cpu_library());
    ggml_backend_load_all();
    ggml_backend_ptr backend(ggml_backend_init_by_name(name, nullptr));
    if (!backend) {
        expect(false, std::string("no device ") + name);
        return;
    }
    int n_equal = 0;
    unsigned seed = std::random_device()();
    printf("seed %u\n", seed);
    for (const shape & s : shapes()) {
        if (!can_store(backend.get(), s.type)) {
            continue;
        }
        const bool is_equal = stored_bytes(backend.get(), s, seed, false) == stored_bytes(backend.get(), s, seed, true);
        n_equal += is_equal;
        expect(is_equal, std::string(ggml_type_name(s.type)) + ", head size " + std::to_string(s.head_size) +
                                 ", rotation " + std::to_string(s.rotation) + ", " + std::to_string(s.n_tokens) +
                                 " tokens" + (s.center ? ", centered" : "") + (s.wide ? ", wide rows" : "") +
                                 ": not what the steps store");
        ++seed;
    }
    printf("%s: %d writes equal in every byte\n", name, n_equal);
}

// a graph without a rotation and a center, as most without a plan: nothing is kept of its nodes
void test_other_graphs() {
    ggml_context_ptr ctx(ggml_init({ N_NODES * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, 128, N_CELLS);
    ggml_tensor * rows = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 64, 2, 3);
    ggml_tensor * indices = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, 3);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph,
                              ggml_set_rows(ctx.get(), cache, ggml_reshape_2d(ctx.get(), rows, 128, 3), indices));
    const size_t before = n_allocated;
    const kvtuner_writes writes(*graph, [](const kvtuner_write &) { return true; });
    const bool is_kept = n_allocated != before;
    expect(!is_kept, "a graph without a write: the nodes were kept");
    expect(!writes.unless_none(), "a graph without a write: one was found");
}

}  // namespace

int main(int argc, char ** argv) {
    test_other_graphs();
    test_steps();
    test_order();
    test_other_readers();
    test_other_shapes();
    test_waits();
    test_on(argc > 1 ? argv[1] : "CPU");
    printf("%d failures\n", failures);
    return failures != 0;
}
