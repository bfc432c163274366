#include "cpu_backend.h"
#include "kvtuner-formats.h"
#include "write_graphs.h"

#include "ggml-alloc.h"

#include <cmath>
#include <random>

namespace {

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

void fill_centers(const writing & w, std::mt19937 & random) {
    const std::vector<float> values = random_values(w.center ? ggml_nelements(w.center) : 0, random);
    if (!w.blocks) {
        fill(w.center, values);
        return;
    }
    std::vector<ggml_fp16_t> table(values.size());
    ggml_fp32_to_fp16_row(values.data(), table.data(), (int64_t)table.size());
    ggml_backend_tensor_set(w.center, table.data(), 0, ggml_nbytes(w.center));
    std::vector<int32_t> blocks(ggml_nelements(w.blocks));
    for (int32_t & block : blocks) {
        block = (int32_t)(random() % N_BLOCKS);
    }
    ggml_backend_tensor_set(w.blocks, blocks.data(), 0, ggml_nbytes(w.blocks));
}

void fill_rope(const writing & w, std::mt19937 & random) {
    if (!w.positions) {
        return;
    }
    std::vector<int32_t> positions(ggml_nelements(w.positions));
    for (int32_t & position : positions) {
        position = (int32_t)(random() % 8192);
    }
    ggml_backend_tensor_set(w.positions, positions.data(), 0, ggml_nbytes(w.positions));
    fill(w.queries, random_values(ggml_nelements(w.queries), random));
    if (w.factors) {
        std::vector<float> factors(ggml_nelements(w.factors));
        for (float & factor : factors) {
            factor = 1 + random() % 8;
        }
        fill(w.factors, factors);
    }
}

// the bytes of the cache, and of the rows beside it, after a write; in steps: each step's result is an output, which no
// kernel may leave out
std::vector<uint8_t> stored_bytes(ggml_backend_t backend, const shape & s, unsigned seed, bool in_steps) {
    ggml_context_ptr ctx = new_context();
    writing w = make_writing(ctx.get(), s);
    for (ggml_tensor * step : { w.turned_queries, w.turned, w.scaled, w.centered, w.exact_centered,
                                w.rotated ? w.rotated->src[0] : nullptr }) {
        if (in_steps && step) {
            ggml_set_output(step);
        }
    }
    std::vector<ggml_tensor *> stored = { w.stored }, places = { w.cache };
    if (w.turned_queries) {
        stored.insert(stored.begin(), w.turned_queries);
        places.push_back(w.queries);
    }
    if (s.has_exact) {
        stored.push_back(w.stored_exact);
        places.push_back(w.exact);
    }
    ggml_cgraph * graph = graph_of(ctx.get(), stored);
    expect(found(graph).empty() == in_steps, "steps that are outputs stay steps");
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    ggml_backend_buffer_clear(buffer.get(), 0);

    std::mt19937 random(seed);
    fill(w.base, random_values(ggml_nelements(w.base), random));
    fill_centers(w, random);
    fill(w.scale, random_values(w.scale ? ggml_nelements(w.scale) : 0, random));
    fill(w.matrix, hadamard(s.rotation));
    fill_rope(w, random);
    std::vector<int64_t> indices(N_CELLS);
    for (int64_t i = 0; i < N_CELLS; ++i) {
        indices[i] = i * 7 % N_CELLS;
    }
    ggml_backend_tensor_set(w.indices, indices.data(), 0, ggml_nbytes(w.indices));
    expect(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "computed");
    std::vector<uint8_t> bytes;
    for (const ggml_tensor * place : places) {
        bytes.resize(bytes.size() + ggml_nbytes(place));
        ggml_backend_tensor_get(place, bytes.data() + bytes.size() - ggml_nbytes(place), 0, ggml_nbytes(place));
    }
    return bytes;
}

bool can_store(ggml_backend_t backend, ggml_type type) {
    ggml_context_ptr ctx = new_context();
    shape s;
    s.type = type;
    return ggml_backend_supports_op(backend, make_writing(ctx.get(), s).stored);
}

std::vector<shape> shapes() {
    std::vector<shape> all;
    for (const ggml_type type : KVTUNER_CACHE_TYPES) {
        for (const int64_t head_size : { 32, 64, 96, 128, 192, 256, 512 }) {
            for (const int64_t rotation : { 0, 64, 128, 256, 512 }) {
                for (const int64_t n_tokens : { 1, 5, 31 }) {
                    for (const int variant : { 0, 1, 2, 3, 4, 5, 8, 9, 17, 19, 25, 32, 33, 34, 35, 49, 51, 57 }) {
                        shape s;
                        s.head_size = head_size;
                        s.n_head = head_size == 96 ? 1 : 3;
                        s.n_tokens = n_tokens;
                        s.rotation = rotation;
                        s.center = variant & 1;
                        s.wide = variant & 2;
                        s.of_values = variant & 4;
                        s.has_exact = variant & 8;
                        s.exact_type = n_tokens == 5 ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
                        s.has_table = variant & 16;
                        s.has_scale = variant & 32;
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

// with RoPE before the write
std::vector<shape> turned_shapes() {
    std::vector<shape> all;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q3_NL }) {
        for (const int64_t head_size : { 64, 128, 256 }) {
            for (const auto rope : { shape::ROPE, shape::ROPE_APART, shape::ROPE_OF_HALF }) {
                for (const int64_t n_tokens : { 1, 5 }) {
                    for (const bool has_scale : { false, true }) {
                        shape s;
                        s.type = type;
                        s.head_size = s.rotation = head_size;
                        s.rope = rope;
                        s.n_tokens = n_tokens;
                        s.has_scale = has_scale;
                        all.push_back(s);
                    }
                }
            }
        }
    }
    return all;
}

// values have blocks of their own in our types, and the same as keys in others
void test_values(ggml_backend_t backend, ggml_type type) {
    shape s;
    s.type = type;
    const std::vector<uint8_t> keys = stored_bytes(backend, s, 1, false);
    s.of_values = true;
    const bool is_ours = type == GGML_TYPE_Q2_NL || type == GGML_TYPE_Q3_NL;
    expect((stored_bytes(backend, s, 1, false) == keys) != is_ours, std::string(ggml_type_name(type)) + ": values");
}

}  // namespace

void test_on(const char * name) {
    printf("%s\n", cpu_library());
    ggml_backend_load_all();
    ggml_backend_ptr backend(ggml_backend_init_by_name(name, nullptr));
    if (!backend) {
        expect(false, std::string("no device ") + name);
        return;
    }
    for (const ggml_type type : KVTUNER_CACHE_TYPES) {
        if (can_store(backend.get(), type)) {
            test_values(backend.get(), type);
        }
    }
    if (can_store(backend.get(), GGML_TYPE_Q2_NL)) {
        test_lowbit_on(backend.get());
    }
    int n_equal = 0;
    unsigned seed = std::random_device()();
    printf("seed %u\n", seed);
    std::vector<shape> all = shapes();
    for (const shape & s : turned_shapes()) {
        all.push_back(s);
    }
    for (const shape & s : all) {
        if (!can_store(backend.get(), s.type)) {
            continue;
        }
        const bool is_equal = stored_bytes(backend.get(), s, seed, false) == stored_bytes(backend.get(), s, seed, true);
        n_equal += is_equal;
        expect(is_equal, std::string(ggml_type_name(s.type)) + ", head size " + std::to_string(s.head_size) +
                                 ", rotation " + std::to_string(s.rotation) + ", " + std::to_string(s.n_tokens) +
                                 " tokens" + (s.center ? ", centered" : "") + (s.wide ? ", wide rows" : "") +
                                 (s.of_values ? ", values" : "") + (s.has_exact ? ", twice" : "") +
                                 (s.has_table ? ", centers of blocks" : "") + (s.has_scale ? ", scaled" : "") +
                                 (s.rope ? ", RoPE " + std::to_string(s.rope) : "") + ": not what the steps store");
        ++seed;
    }
    printf("%s: %d writes equal in every byte\n", name, n_equal);
}
