// Attention over marked caches against a plain loop in float64: every pair of types, every head size that both can
// have, shared KV heads, odd lengths, all kinds of masks, keys less of centers, exact rows; and the same bits for any
// number of threads and with a common buffer too small to share out tokens. What is no number shows, where it is seen.
// The buffer holds no more than needed.
//
//   kvtuner-test-attention [CASES OF A PAIR AND SIZE] [SEED]

#include "attention_expected.h"
#include "kvtuner-formats.h"

#include <algorithm>
#include <numeric>

namespace {

constexpr double MOST_ERROR = 1e-9;  // normalized mean squared; the bar of upstream's own tests is 5e-4

const head_sizes SIZES[] = {
    { 64, 64 },   { 80, 80 },   { 96, 96 },   { 112, 112 }, { 128, 128 }, { 192, 192 },
    { 256, 256 }, { 512, 512 }, { 192, 128 }, { 128, 192 }, { 64, 96 },   { 40, 72 },
};

setting random_setting(ggml_type type_k, ggml_type type_v, head_sizes size, std::mt19937 & random) {
    setting s = {};
    s.type_k = type_k;
    s.type_v = type_v;
    s.size = size;
    s.group = pick({ 1, 2, 3, 4, 5, 6, 7, 8 }, random);
    s.n_head_kv = pick({ 1, 2, 3 }, random);
    s.n_stream = pick({ 1, 1, 2 }, random);
    s.n_query = pick({ 1, 1, 2, 5, 16, 33 }, random);
    s.n_token = pick({ 1, 31, 64, 113, 257, 301 }, random);
    s.mask = (mask_kind)(random() % N_MASKS);
    s.scale = 1 / std::sqrt((float)size.k);
    s.max_bias = s.mask == NO_MASK ? 0.0f : pick({ 0.0f, 0.0f, 8.0f }, random);
    s.softcap = pick({ 0.0f, 0.0f, 30.0f }, random);
    s.has_sinks = random() % 3 == 0;
    s.n_center = pick({ 0, 0, 1, 3, 16, 37 }, random);
    s.n_slot = pick({ 0, 0, 1, 36, 97 }, random);
    s.type_exact = fits(GGML_TYPE_Q8_0, size.k) && fits(GGML_TYPE_Q8_0, size.v) && random() % 2 ? GGML_TYPE_Q8_0
                                                                                                : GGML_TYPE_F16;
    return s;
}

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return memcmp(a.data(), b.data(), b.size() * sizeof(float)) == 0;
}

struct tally {
    int n_cases = 0, n_failed = 0;
    double worst = 0;

    void run(const setting & s, std::mt19937 & random) {
        attention_case c(s, random);
        const std::vector<float> got = c.run(1);
        const double error = error_of(c, got, random);
        ++n_cases;
        worst = std::max(worst, error);
        bool is_right = error <= MOST_ERROR;
        for (int n_threads : { 2, 3, 5 }) {
            const std::vector<float> again = c.run(n_threads);
            is_right = is_right && same_bits(again, got);
        }
        is_right = is_right && same_bits(c.run(3, false), got);
        if (!is_right) {
            ++n_failed;
            printf("FAIL error %.2e or other bits: %s\n", error, s.text().c_str());
        }
    }
};

}  // namespace

int main(int argc, char ** argv) {
    const int n_each = argc > 1 ? atoi(argv[1]) : 2;
    std::mt19937 random(argc > 2 ? atoi(argv[2]) : 1);
    printf("%s\n", cpu_library());
    tally all;
    for (ggml_type type_k : KVTUNER_CACHE_TYPES) {
        for (ggml_type type_v : KVTUNER_CACHE_TYPES) {
            for (const head_sizes & size : SIZES) {
                for (int i = 0; i < n_each && fits(type_k, size.k) && fits(type_v, size.v); ++i) {
                    all.run(random_setting(type_k, type_v, size, random), random);
                }
            }
        }
    }
    const bool is_right = edges_are_right(random);
    printf("%d cases, worst normalized error %.2e, %d failures\n", all.n_cases, all.worst, all.n_failed);
    return all.n_failed != 0 || !is_right;
}
