// The kernel of cpp/cuda that has a norm with its weights and quantizes what it makes, on the CPU: values by the
// formula of upstream's rms_norm_f32 and their q8_1 by that of quantize_q8_1, in every bit; nothing else is written.

#include "kvtuner-cuda-norm-kernel.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

using namespace kvtuner::cuda;

namespace {

constexpr float EPS = 1e-5f, UNWRITTEN = -77;
constexpr char UNTOUCHED = 0x55;
constexpr size_t BEHIND = 128;  // bytes behind the rows of q8_1 that stay as they are

int failures = 0, n_tests = 0;

// in the order in which lanes of a warp exchange them
float sum_of_lanes(std::vector<float> values) {
    for (size_t n = values.size() / 2; n > 0; n /= 2) {
        for (size_t i = 0; i < n; ++i) {
            values[i] += values[i + n];
        }
    }
    return values[0];
}

void put_block(const float * x, int n, char * block) {
    std::vector<float> values(Q8_VALUES, 0.0f);
    std::copy_n(x, n, values.begin());
    float most = 0;
    for (const float value : values) {
        most = std::max(most, std::fabs(value));
    }
    const float scale = most / 127.0f;
    *(half2 *)block = __floats2half2_rn(scale, sum_of_lanes(values));
    for (int i = 0; i < Q8_VALUES; ++i) {
        block[4 + i] = (char)(int8_t)(most == 0.0f ? 0 : roundf(values[i] / scale));
    }
}

struct problem {
    int n_values, n_rows, n_between;  // the latter: values between rows
    bool is_multiplied, is_zero;

    void print(const char * what) const {
        printf("%d values, %d rows: %s\n", n_values, n_rows, what);
    }
};

void expect(bool is_right, const problem & p, const char * what) {
    if (!is_right) {
        p.print(what);
        ++failures;
    }
}

// of squares, in the order in which upstream's threads and warps add them
float sum_of_squares(const float * x, int n_values, int n_threads) {
    std::vector<float> of_threads(n_threads, 0.0f), of_warps(NORM_WARP, 0.0f);
    for (int i = 0; i < n_values; ++i) {
        of_threads[i % n_threads] += x[i] * x[i];
    }
    for (int warp = 0; warp < n_threads / NORM_WARP; ++warp) {
        const auto first = of_threads.begin() + warp * NORM_WARP;
        of_warps[warp] = sum_of_lanes({ first, first + NORM_WARP });
    }
    return sum_of_lanes(of_warps);
}

bool are_norms(const problem & p, const norm_args & a, int n_threads) {
    for (int row = 0; row < p.n_rows; ++row) {
        const float *x = a.rows + row * a.row_stride, *out = a.out + (int64_t)row * p.n_values;
        const float scale = rsqrtf(sum_of_squares(x, p.n_values, n_threads) / p.n_values + EPS);
        for (int i = 0; i < p.n_values; ++i) {
            if (scale * x[i] * a.weights[i] != out[i]) {
                return false;
            }
        }
    }
    return true;
}

std::vector<char> expected_q8(const problem & p, const norm_args & a, size_t n_bytes) {
    std::vector<char> q8(n_bytes, UNTOUCHED);
    char * block = q8.data();
    for (int row = 0; p.is_multiplied && row < p.n_rows; ++row) {
        for (int at = 0; at < a.n_padded(); at += Q8_VALUES, block += Q8_BYTES) {
            put_block(a.out + (int64_t)row * p.n_values + at, std::clamp(p.n_values - at, 0, Q8_VALUES), block);
        }
    }
    return q8;
}

void test(const problem & p, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    const auto next = [&] { return normal(random); };
    const int stride = p.n_values + p.n_between;
    std::vector<float> rows(p.n_rows * stride), weights(p.n_values), out(p.n_rows * p.n_values + 1, UNWRITTEN);
    std::generate(weights.begin(), weights.end(), next);
    if (!p.is_zero) {
        std::generate(rows.begin(), rows.end(), next);
    }
    norm_args a = { rows.data(), weights.data(), out.data(), nullptr, stride, p.n_values, EPS };
    std::vector<char> q8(p.n_rows * (a.n_padded() / Q8_VALUES * Q8_BYTES) + BEHIND, UNTOUCHED);
    a.q8 = p.is_multiplied ? q8.data() : nullptr;
    const int n_threads = p.n_values < SHORT_NORM ? FEW_NORM_THREADS : MANY_NORM_THREADS;
    const auto kernel = n_threads == FEW_NORM_THREADS ? norm_rows<FEW_NORM_THREADS> : norm_rows<MANY_NORM_THREADS>;
    cuda_on_cpu::run({ dim3(p.n_rows), dim3(n_threads), 0 }, [&] { kernel(a); });
    expect(are_norms(p, a, n_threads), p, "not upstream's norm");
    expect(out.back() == UNWRITTEN, p, "written behind the rows");
    expect(q8 == expected_q8(p, a, q8.size()), p, "not what upstream quantizes");
    ++n_tests;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    for (const int n_values : { 32, 64, 576, 1000, 1024, 3584, 4096, 8192 }) {
        test({ n_values, 1, 0, true, false }, random);
        test({ n_values, 3, 32, true, false }, random);
    }
    test({ 4096, 2, 0, false, false }, random);
    test({ 576, 8, 7, true, true }, random);
    printf("%d sets of rows, %d failures\n", n_tests, failures);
    return failures > 0;
}
