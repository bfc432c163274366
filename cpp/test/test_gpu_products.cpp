// Products of quantized weights with some rows on a device, in graphs with attention of a plan and without: against
// sums in double of the same weights and rows. Two read the same rows, and one what comes out; a graph is computed
// several times, by which CUDA records it, and gives the same bits. Tells how many came out otherwise than without a
// plan.
//
//   kvtuner-test-gpu-products [DEVICE] [SEED] [small]
//
// small: what a CPU does in seconds.

#include "kvtuner-mark.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr double MAX_NMSE = 2e-4;  // rows are rounded to 8 bits
constexpr int N_RUNS = 4;

using floats = std::vector<float>;

int n_products = 0, n_failed = 0, n_others = 0;

struct problem {
    ggml_type type;
    int64_t n_values, n_weights, n_rows;
};

// a matrix [n, n_rows] of quantized weights
struct matrix {
    ggml_type type;
    int64_t n, n_rows;
    std::vector<char> bytes;
    floats values;

    matrix(ggml_type type, int64_t n, int64_t n_rows, std::mt19937 & random)
        : type(type), n(n), n_rows(n_rows), bytes(ggml_row_size(type, n) * n_rows), values(n * n_rows) {
        std::normal_distribution<float> normal;
        std::generate(values.begin(), values.end(), [&] { return normal(random) + 0.2f; });
        ggml_quantize_chunk(type, values.data(), bytes.data(), 0, n_rows, n, nullptr);
        ggml_get_type_traits(type)->to_float(bytes.data(), values.data(), (int64_t)values.size());
    }

    double nmse(const floats & rows, const floats & products) const {
        double error = 0, all = 0;
        for (size_t i = 0; i < products.size(); ++i) {
            const float *row = &rows[i / n_rows * n], *weights = &values[i % n_rows * n];
            double sum = 0;
            for (int64_t k = 0; k < n; ++k) {
                sum += (double)row[k] * weights[k];
            }
            error += (products[i] - sum) * (products[i] - sum);
            all += sum * sum;
        }
        return error / all;
    }
};

ggml_context_ptr new_context() {
    return ggml_context_ptr(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
}

// weights as a model has them
class device_matrix {
public:
    device_matrix(ggml_backend_t backend, const matrix & m)
        : ctx(new_context()),
          tensor(ggml_new_tensor_2d(ctx.get(), m.type, m.n, m.n_rows)),
          buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend)) {
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set(tensor, m.bytes.data(), 0, m.bytes.size());
    }

private:
    ggml_context_ptr ctx;

public:
    ggml_tensor * tensor;

private:
    ggml_backend_buffer_ptr buffer;
};

floats values_of(const ggml_tensor * t) {
    floats values(ggml_nelements(t));
    ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
    return values;
}

ggml_tensor * attention(ggml_context * c, bool has_plan) {
    ggml_tensor * q = ggml_new_tensor_3d(c, GGML_TYPE_F32, 64, 1, 8);
    ggml_tensor * k = ggml_new_tensor_3d(c, GGML_TYPE_F16, 64, 256, 8);
    ggml_tensor * out = ggml_flash_attn_ext(c, q, k, k, ggml_new_tensor_2d(c, GGML_TYPE_F16, 256, 1), 1, 0, 0);
    if (has_plan) {
        kvtuner_mark(out);
    }
    return out;
}

struct three {
    floats first, second, third;
};

// first and second of the rows, third of the first
three products(ggml_backend_t backend, const std::vector<matrix> & matrices, const floats & rows, bool has_plan) {
    const device_matrix a(backend, matrices[0]), b(backend, matrices[1]), c(backend, matrices[2]);
    const ggml_context_ptr ctx = new_context();
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, matrices[0].n, (int64_t)rows.size() / matrices[0].n);
    ggml_tensor *first = ggml_mul_mat(ctx.get(), a.tensor, x), *second = ggml_mul_mat(ctx.get(), b.tensor, x);
    ggml_tensor * third = ggml_mul_mat(ctx.get(), c.tensor, first);
    for (ggml_tensor * node : { attention(ctx.get(), has_plan), first, second, third }) {
        ggml_build_forward_expand(graph, node);
    }
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    ggml_backend_buffer_clear(buffer.get(), 0);
    ggml_backend_tensor_set(x, rows.data(), 0, ggml_nbytes(x));
    three found;
    for (int i = 0; i < N_RUNS; ++i) {
        ggml_backend_graph_compute(backend, graph);
        const three now = { values_of(first), values_of(second), values_of(third) };
        if (i > 0 && (now.first != found.first || now.second != found.second || now.third != found.third)) {
            printf("other bits in run %d\n", i + 1);
            ++n_failed;
        }
        found = now;
    }
    return found;
}

void check(const problem & p, const matrix & m, const floats & rows, const floats & found, bool has_plan) {
    const double nmse = m.nmse(rows, found);
    ++n_products;
    if (!(nmse <= MAX_NMSE)) {
        printf("%s, %lld x %lld, %lld rows%s: NMSE %.1e\n", ggml_type_name(p.type), (long long)m.n, (long long)m.n_rows,
               (long long)p.n_rows, has_plan ? ", plan" : "", nmse);
        ++n_failed;
    }
}

void test(ggml_backend_t backend, const problem & p, std::mt19937 & random) {
    const std::vector<matrix> matrices = { { p.type, p.n_values, p.n_weights, random },
                                           { p.type, p.n_values, p.n_weights, random },
                                           { p.type, p.n_weights, 96, random } };
    std::normal_distribution<float> normal;
    floats rows(p.n_values * p.n_rows);
    std::generate(rows.begin(), rows.end(), [&] { return normal(random); });
    three found[2];
    for (const bool has_plan : { false, true }) {
        found[has_plan] = products(backend, matrices, rows, has_plan);
        check(p, matrices[0], rows, found[has_plan].first, has_plan);
        check(p, matrices[1], rows, found[has_plan].second, has_plan);
        check(p, matrices[2], found[has_plan].first, found[has_plan].third, has_plan);
    }
    n_others += found[0].first != found[1].first;
}

}  // namespace

int main(int argc, char ** argv) {
    const char * device = argc > 1 ? argv[1] : "CUDA0";
    std::mt19937 random(argc > 2 ? atoi(argv[2]) : 1);
    const bool is_small = argc > 3 && strcmp(argv[3], "small") == 0;
    ggml_backend_load_all();
    const ggml_backend_ptr backend(ggml_backend_init_by_name(device, nullptr));
    if (!backend) {
        printf("no device %s\n", device);
        return 2;
    }
    for (const ggml_type type :
         { GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q5_K, GGML_TYPE_Q5_0 }) {
        test(backend.get(), { type, 2048, 256, 9 }, random);
        if (is_small) {
            continue;
        }
        for (const int64_t n_rows : { 1, 7, 8, 16, 17, 32, 40, 64, 65 }) {
            test(backend.get(), { type, 2048, 256, n_rows }, random);
        }
        test(backend.get(), { type, 8192, 512, 24 }, random);
        test(backend.get(), { type, 2048, 10240, 32 }, random);  // enough for the largest blocks of threads
    }
    printf("%d products, %d failures; %d of %d came out otherwise with a plan\n", n_products, n_failed, n_others,
           n_products / 6);
    return n_failed != 0;
}
