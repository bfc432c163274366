// Instructions that attention over a plan's caches takes, as a part of those of upstream's over f16: a guard against
// compilers that make poor code of the kernels, which no other load on the machine can trip. Each instruction between
// two marks ends in a trap of the processor, and its handler counts it: exact, on any x86, without privileges.

#include "cpu_backend.h"
#include "kvtuner-mark.h"

#include <signal.h>
#include <x86intrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr unsigned TRAP_FLAG = 0x100;

volatile int64_t n_traps = 0;

void count(int) {
    n_traps = n_traps + 1;
}

template <typename F>
int64_t instructions(F run) {
    run();  // what happens once only
    n_traps = 0;
    __writeeflags(__readeflags() | TRAP_FLAG);
    run();
    __writeeflags(__readeflags() & ~(unsigned long long)TRAP_FLAG);
    return n_traps;
}

struct shape {
    const char * name;
    int64_t n_query, n_token, n_head, n_head_kv;
    double most;  // of upstream's instructions
};

// Small, since a virtual machine takes 20 us for a trap.
const shape SHAPES[] = {
    { "decode", 1, 128, 9, 3, 0.8 },
    { "prefill", 64, 64, 3, 1, 0.85 },
};

constexpr int64_t HEAD_SIZE = 64;

void fill(ggml_tensor * tensor, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(ggml_nelements(tensor));
    for (float & value : values) {
        value = normal(random);
    }
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(tensor->data, values.data(), ggml_nbytes(tensor));
    } else {
        CPU_FUNCTION(ggml_get_type_traits_cpu)(tensor->type)->from_float(values.data(), tensor->data, values.size());
    }
}

int64_t instructions_of(const shape & s, ggml_type type_k, ggml_type type_v, bool is_of_plan) {
    std::mt19937 random(1);
    ggml_context * ctx = ggml_init({ (size_t)16 << 20, nullptr, false });
    ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, HEAD_SIZE, s.n_query, s.n_head);
    ggml_tensor * k = ggml_new_tensor_3d(ctx, type_k, HEAD_SIZE, s.n_token, s.n_head_kv);
    ggml_tensor * v = ggml_new_tensor_3d(ctx, type_v, HEAD_SIZE, s.n_token, s.n_head_kv);
    for (ggml_tensor * tensor : { q, k, v }) {
        fill(tensor, random);
    }
    ggml_tensor * mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, s.n_token, s.n_query);
    memset(mask->data, 0, ggml_nbytes(mask));
    ggml_tensor * node = ggml_flash_attn_ext(ctx, q, k, v, mask, 1 / std::sqrt((float)HEAD_SIZE), 0, 0);
    if (is_of_plan) {
        kvtuner_mark(node);
    }
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, node);
    ggml_cplan plan = CPU_FUNCTION(ggml_graph_plan)(graph, 1, nullptr);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    const auto compute = CPU_FUNCTION(ggml_graph_compute);
    const int64_t n = instructions([&] { compute(graph, &plan); });
    ggml_free(ctx);
    return n;
}

bool is_within(const shape & s) {
    const int64_t upstream = instructions_of(s, GGML_TYPE_F16, GGML_TYPE_F16, false);
    const int64_t ours = instructions_of(s, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, true);
    const double ratio = (double)ours / upstream;
    printf("%s: %lld instructions over q8_0/q4_0, upstream's %lld over f16: %.3f, at most %.3f%s\n", s.name,
           (long long)ours, (long long)upstream, ratio, s.most, ratio <= s.most ? "" : " FAILED");
    return ratio <= s.most;
}

}  // namespace

int main() {
    struct sigaction action = {};
    action.sa_handler = count;
    sigaction(SIGTRAP, &action, nullptr);
    printf("%s\n", cpu_library());
    bool are_within = true;
    for (const shape & s : SHAPES) {
        are_within = is_within(s) && are_within;
    }
    return !are_within;
}
