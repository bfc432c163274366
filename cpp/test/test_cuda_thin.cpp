// The kernels of cpp/cuda that multiply quantized weights and some rows, on the CPU: against sums in double of the same
// weights and of rows that are quantized as q8_0 is. Nothing else is written, and in what order threads and copies get
// on changes no bit; nor does how many rows there are.

#include "kvtuner-cuda-thin.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

using namespace kvtuner::cuda;

namespace {

constexpr float UNWRITTEN = -77;
constexpr int N_TICKETS = 256;
constexpr double MAX_NMSE = 1e-10;  // sums in float

int failures = 0, n_tests = 0;

struct problem {
    ggml_type type;
    int n_values, n_weights, n_rows;
    thin_device device;

    void expect(bool is_right, const std::string & what) const {
        if (!is_right) {
            printf("%s, %d x %d, %d rows, %d multiprocessors, %d bytes: %s\n", ggml_type_name(type), n_values,
                   n_weights, n_rows, device.n_multiprocessors, device.shared_bytes, what.c_str());
            ++failures;
        }
    }
};

struct numbers {
    std::vector<float> weights, rows, rounded;  // weights and rows as they are stored, rows
    std::vector<char> quantized;
};

void round_rows(const std::vector<float> & rows, std::vector<float> & rounded) {
    rounded.resize(rows.size());
    for (size_t first = 0; first < rows.size(); first += THIN_BLOCK) {
        float most = 0;
        for (size_t i = first; i < first + THIN_BLOCK; ++i) {
            most = std::max(most, std::fabs(rows[i]));
        }
        const float scale = most / 127.0f;
        for (size_t i = first; i < first + THIN_BLOCK; ++i) {
            rounded[i] = most == 0 ? 0 : roundf(rows[i] / scale) * (float)__float2half_rn(scale);
        }
    }
}

numbers some_numbers(const problem & p, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    numbers n;
    std::vector<float> weights((size_t)p.n_weights * p.n_values);
    std::generate(weights.begin(), weights.end(), [&] { return normal(random) + 0.3f; });
    n.quantized.resize(ggml_row_size(p.type, p.n_values) * p.n_weights);
    ggml_quantize_chunk(p.type, weights.data(), n.quantized.data(), 0, p.n_weights, p.n_values, nullptr);
    n.weights.resize(weights.size());
    ggml_get_type_traits(p.type)->to_float(n.quantized.data(), n.weights.data(), (int64_t)weights.size());
    n.rows.resize((size_t)p.n_rows * p.n_values);
    std::generate(n.rows.begin(), n.rows.end(), [&] { return normal(random) * std::exp(normal(random)); });
    std::fill_n(n.rows.begin(), THIN_BLOCK, 0.0f);
    round_rows(n.rows, n.rounded);
    return n;
}

template <ggml_type T, int PARTS>
void launch(const problem & p, const thin_args & args, const thin_launch & how, int n_blocks) {
    const int tiles = thin_tiles(p.n_rows);
    const cuda_on_cpu::launch grid = { dim3(n_blocks, all_thin_tiles(p.n_rows) / tiles, how.n_splits),
                                       dim3(THIN_WARPS * THIN_LANES), how.shared_bytes };
    cuda_on_cpu::run(grid, [&] {
        switch (tiles) {
            case 1:
                return multiply_thin<T, PARTS, 1>(args);
            case 2:
                return multiply_thin<T, PARTS, 2>(args);
            default:
                return multiply_thin<T, PARTS, MOST_THIN_TILES>(args);
        }
    });
}

template <ggml_type T>
void launch(const problem & p, thin_args args) {
    const int n_steps = p.n_values / THIN_STEP, n_tiles = all_thin_tiles(p.n_rows);
    const thin_shape shape = { thin_weights<T>::STRIDE, n_steps, p.n_weights, thin_tiles(p.n_rows), n_tiles };
    const thin_launch how = thin_launch_of(shape, p.device);
    p.expect(how.n_stages > 0 && how.shared_bytes <= p.device.shared_bytes, "too much shared memory");
    std::vector<float> parts((size_t)how.n_splits * n_tiles * THIN_TILE * p.n_weights, NAN);
    args.parts = parts.data();
    args.n_stages = how.n_stages;
    const int n_blocks = thin_blocks(shape, how.parts);
    how.parts == 1 ? launch<T, 1>(p, args, how, n_blocks) : launch<T, 2>(p, args, how, n_blocks);
}

std::vector<float> products(const problem & p, const numbers & n) {
    const size_t n_blocks = (size_t)p.n_values / THIN_BLOCK * all_thin_tiles(p.n_rows);
    std::vector<uint2> codes(n_blocks * THIN_LANES, { 0x55555555, 0x55555555 });
    std::vector<thin_scales> scales(n_blocks * 4, { { { 0x7fff }, { 0x7fff } }, { 1, 1 } });
    std::vector<int> tickets(N_TICKETS, 77);
    const thin_rows rows = { codes.data(), scales.data(), all_thin_tiles(p.n_rows) };
    const thin_rows_args from = { n.rows.data(), p.n_values, p.n_rows, rows, tickets.data(), N_TICKETS };
    cuda_on_cpu::run({ dim3(p.n_values / THIN_STEP, all_thin_tiles(p.n_rows) * THIN_TILE), dim3(THIN_ROWS_THREADS), 0 },
                     [&] { quantize_thin(from); });
    std::vector<float> out((size_t)p.n_rows * p.n_weights + 1, UNWRITTEN);
    const int64_t stride = (int64_t)ggml_row_size(p.type, p.n_values);
    const thin_args args = { n.quantized.data(), stride,     rows,        out.data(), nullptr,
                             tickets.data(),     p.n_values, p.n_weights, p.n_rows,   /*n_stages =*/0 };
    with_thin_type(p.type, [&](auto type) { launch<type()>(p, args); });
    p.expect(out.back() == UNWRITTEN, "written behind the output");
    p.expect(std::count(tickets.begin(), tickets.end(), 0) == N_TICKETS, "tickets that are not 0 at last");
    out.pop_back();
    return out;
}

double nmse_of(const problem & p, const numbers & n, const std::vector<float> & out) {
    double error = 0, all = 0;
    for (int row = 0; row < p.n_rows; ++row) {
        for (int i = 0; i < p.n_weights; ++i) {
            double sum = 0;
            for (int k = 0; k < p.n_values; ++k) {
                sum += (double)n.weights[(size_t)i * p.n_values + k] * n.rounded[(size_t)row * p.n_values + k];
            }
            const double off = out[(size_t)row * p.n_weights + i] - sum;
            error += off * off;
            all += sum * sum;
        }
    }
    return error / all;
}

void test(const problem & p, std::mt19937 & random) {
    const numbers n = some_numbers(p, random);
    cuda_on_cpu::how = {};
    const std::vector<float> out = products(p, n);
    const double nmse = nmse_of(p, n, out);
    p.expect(nmse <= MAX_NMSE, "NMSE " + std::to_string(nmse));
    for (const cuda_on_cpu::schedule how : { cuda_on_cpu::schedule{ true, false }, { false, true }, { true, true } }) {
        cuda_on_cpu::how = how;
        p.expect(products(p, n) == out, "another order, other bits");
    }
    problem one = p;
    one.n_rows = 1;
    const std::vector<float> of_one = products(one, n);
    p.expect(std::equal(of_one.begin(), of_one.end(), out.begin()), "a row alone, other bits");
    ++n_tests;
}

// whose blocks of threads have as much shared memory as those of compute capability 8.6, 8.0 and 9.0, and for the last
// so few multiprocessors that blocks have two parts
constexpr thin_device DEVICES[] = { { 84, 101376 }, { 108, 166912 }, { 132, 232448 }, { 1, 232448 } };

}  // namespace

int main() {
    std::mt19937 random(1);
    for (const ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K }) {
        for (const thin_device & device : DEVICES) {
            test({ type, 2048, 40, 20, device }, random);
        }
        test({ type, 2048, 65, 40, DEVICES[2] }, random);  // blocks share values, and tiles
        test({ type, 6144, 33, 9, DEVICES[3] }, random);   // more steps than stages
        test({ type, 2048, 33, 8, DEVICES[2] }, random);
    }
    for (const ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K }) {
        test({ type, 256, 32, 8, DEVICES[0] }, random);
        test({ type, 512, 1, 64, DEVICES[1] }, random);
        test({ type, 2048 + 768, 140, 12, DEVICES[3] }, random);
    }
    printf("%d products, %d failures\n", n_tests, failures);
    return failures > 0;
}
