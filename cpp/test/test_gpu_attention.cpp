// Attention over marked caches on a device against a plain loop in float64: every pair of types that a plan can choose
// and the head sizes with kernels, shared KV heads, streams, masks, ALiBi, caps, sinks, keys less of centers, exact
// rows; one query and many; some with rotations around them, as caches of a plan are read. Writes the worst error of
// each count of queries; with KVTUNER_SHOW set, each case before it runs.
//
//   kvtuner-test-gpu-attention [DEVICE] [CASES OF A PAIR AND SIZE] [SEED] [small]
//
// small: for a device that is emulated; cases of a pair have any of the sizes.

#include "attention_errors.h"
#include "device_node.h"
#include "kvtuner-formats.h"
#include "rotated_case.h"

#include <map>

namespace {

constexpr int64_t MANY = 21;  // queries, for an emulated device

// that have kernels of ours: CUDA takes 32 values at once
std::vector<head_sizes> sizes_on(const std::string & device) {
    std::vector<head_sizes> sizes = { { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 }, { 512, 512 } };
    if (device.compare(0, 3, "MTL") == 0) {
        sizes.insert(sizes.end(), { { 80, 80 }, { 112, 112 } });
    }
    return sizes;
}

// upstream's kernels, which take many queries, want groups of 8 for these sizes
int64_t group_for(head_sizes size, std::mt19937 & random) {
    return size.k == size.v && size.k < 512 ? pick({ 1, 2, 3, 4, 5, 7, 8, 12 }, random) : pick({ 8, 16 }, random);
}

setting random_setting(ggml_type type_k, ggml_type type_v, head_sizes size, std::mt19937 & random) {
    setting s = {};
    s.type_k = type_k;
    s.type_v = type_v;
    s.size = size;
    s.group = group_for(size, random);
    s.n_head_kv = size.k >= 256 ? pick({ 1, 2, 4 }, random) : pick({ 1, 2, 3, 4, 8, 16 }, random);
    s.n_stream = pick({ 1, 1, 2, 3 }, random);
    s.n_query = pick({ 1, 1, 2, 5, 16, 33 }, random);
    s.n_token = pick({ 256, 512, 1280 }, random);
    s.mask = pick({ CAUSAL, WINDOW, HOLES }, random);
    s.scale = 1 / std::sqrt((float)size.k);
    s.max_bias = size.k == size.v && size.k < 512 ? pick({ 0.0f, 0.0f, 8.0f }, random) : 0.0f;
    s.softcap = size.k == 128 || size.k == 256 ? pick({ 0.0f, 0.0f, 30.0f }, random) : 0.0f;
    s.has_sinks = random() % 3 == 0;
    s.n_center = pick({ 0, 0, 1, 3, 16, 37 }, random);
    s.n_slot = pick({ 0, 0, 1, 36, 97, 160 }, random);
    const bool has_blocks = fits(GGML_TYPE_Q8_0, size.k) && fits(GGML_TYPE_Q8_0, size.v);
    s.type_exact = random() % 2 && has_blocks ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    s.all_see = true;  // upstream's kernels divide by zero
    s.has_own_slots = random() % 2;
    return s;
}

// what an emulated device does in a second
setting small_setting(setting s, std::mt19937 & random) {
    s.group = pick({ 1, 2, 3, 4, 8, 16 }, random);
    s.n_head_kv = s.size.k >= 256 || s.group > 4 ? 1 : 2;
    s.n_stream = pick({ 1, 2 }, random);
    s.n_query = pick<int64_t>({ 1, 2, 5, 16, MANY, MANY }, random);
    s.n_token = pick({ 37, 64, 96, 300 }, random);
    s.n_slot = pick({ 0, 0, 1, 36 }, random);
    s.has_hint = random() % 2;
    return s;
}

struct tally : attention_errors {
    int n_left_out = 0;
    std::map<int64_t, double> worst;

    void run(ggml_backend_t backend, const setting & s, std::mt19937 & random) {
        if (getenv("KVTUNER_SHOW")) {
            printf("%s\n", s.text().c_str());
            fflush(stdout);
        }
        attention_case c(s, random);
        device_node node(backend, c.out);
        if (!node.is_supported()) {
            printf("not supported: %s\n", s.text().c_str());
            ++n_left_out;
            return;
        }
        const std::vector<float> got = node.run();
        check_first(c, got, "", random);
        check_again(c, got, node.run(), random);
        if (random() % 4 == 0 || (s.type_k == GGML_TYPE_F16 && s.type_v == GGML_TYPE_F16)) {
            const rotated_case around(c);
            check_first(c, around.before_rotation(device_node(backend, around.out).run()), "rotated ", random);
        }
    }

private:
    // the same work once more gives the same bits
    void check_again(const attention_case & c, const std::vector<float> & first, const std::vector<float> & again,
                     std::mt19937 & random) {
        if (memcmp(first.data(), again.data(), first.size() * sizeof(float)) != 0) {
            ++n_failed;
            printf("FAIL other bits, error %.2e: %s\n", error_of(c, again, random), c.s.text().c_str());
        }
    }

    void check_first(const attention_case & c, const std::vector<float> & got, const char * how,
                     std::mt19937 & random) {
        double & most = worst[c.s.n_query];
        most = std::max(most, check(c, got, how + c.s.text(), random));
    }
};

}  // namespace

int main(int argc, char ** argv) {
    const char * device = argc > 1 ? argv[1] : "CUDA0";
    const int n_each = argc > 2 ? atoi(argv[2]) : 1;
    std::mt19937 random(argc > 3 ? atoi(argv[3]) : 1);
    const bool is_small = argc > 4 && strcmp(argv[4], "small") == 0;
    ggml_backend_load_all();
    ggml_backend_ptr backend(ggml_backend_init_by_name(device, nullptr));
    if (!backend) {
        printf("no device %s\n", device);
        return 2;
    }
    const std::vector<head_sizes> sizes = sizes_on(device);
    tally all;
    const auto run = [&](ggml_type type_k, ggml_type type_v, head_sizes size) {
        for (int i = 0; i < n_each && fits(type_k, size.k) && fits(type_v, size.v); ++i) {
            const setting s = random_setting(type_k, type_v, size, random);
            all.run(backend.get(), is_small ? small_setting(s, random) : s, random);
        }
    };
    for (ggml_type type_k : KVTUNER_CACHE_TYPES) {
        for (ggml_type type_v : KVTUNER_CACHE_TYPES) {
            if (is_small) {
                run(type_k, type_v, sizes[random() % sizes.size()]);
                continue;
            }
            for (const head_sizes & size : sizes) {
                run(type_k, type_v, size);
            }
        }
    }
    for (size_t i = 0; is_small && i < sizes.size(); ++i) {  // each of them with many queries
        setting s = small_setting(random_setting(GGML_TYPE_F16, GGML_TYPE_BF16, sizes[i], random), random);
        s.n_query = MANY;
        all.run(backend.get(), s, random);
    }
    for (const auto & [n_query, error] : all.worst) {
        printf("%lld queries: worst normalized error %.2e\n", (long long)n_query, error);
    }
    printf("%d cases, %d not supported, %d failures\n", all.n_cases, all.n_left_out, all.n_failed);
    return all.n_failed != 0;
}
