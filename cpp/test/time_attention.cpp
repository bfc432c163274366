// Microseconds that a device takes for attention of a layer, at several lengths: over marked caches, and over f16 as
// upstream has it. Each layer has memory of its own, more in all than a cache of the device holds.
//
//   kvtuner-time-attention [DEVICE] [VALUES OF A HEAD] [KV HEADS] [GROUP] [LENGTH[xSTREAMS],...] [K/V,...] [QUERIES]

#include "kvtuner-mark.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr size_t MOST_BYTES = (size_t)800 << 20;
constexpr int N_TIMES = 9;

struct shape {
    int64_t size, n_head_kv, group, n_token, n_stream, n_query;
};

std::vector<std::string> split(const std::string & text, char at) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, at);) {
        parts.push_back(part);
    }
    return parts;
}

ggml_type type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (ggml_type_name((ggml_type)i) && name == ggml_type_name((ggml_type)i)) {
            return (ggml_type)i;
        }
    }
    fprintf(stderr, "no type %s\n", name.c_str());
    exit(2);
}

// some rows of random values, again and again
void fill(ggml_tensor * t) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const int64_t n = std::min<int64_t>(ggml_nelements(t), t->ne[0] * 512);
    std::vector<float> values(n);
    for (float & x : values) {
        x = normal(random);
    }
    std::vector<uint8_t> bytes(n * ggml_type_size(t->type) / ggml_blck_size(t->type));
    if (t->type == GGML_TYPE_F32) {
        memcpy(bytes.data(), values.data(), bytes.size());
    } else {
        ggml_quantize_chunk(t->type, values.data(), bytes.data(), 0, n / t->ne[0], t->ne[0], nullptr);
    }
    for (size_t at = 0; at < ggml_nbytes(t); at += bytes.size()) {
        ggml_backend_tensor_set(t, bytes.data(), at, std::min(bytes.size(), ggml_nbytes(t) - at));
    }
}

ggml_tensor * cache(ggml_context * ctx, ggml_type type, const shape & s) {
    ggml_tensor * t = ggml_new_tensor_3d(ctx, type, s.size * s.n_head_kv, s.n_token, s.n_stream);
    return ggml_view_4d(ctx, t, s.size, s.n_token, s.n_head_kv, s.n_stream, t->nb[1], ggml_row_size(type, s.size),
                        t->nb[2], 0);
}

// microseconds of a layer
double time_of(ggml_backend_t backend, const shape & s, ggml_type type_k, ggml_type type_v, bool is_marked) {
    const size_t bytes =
            s.n_token * s.n_stream * s.n_head_kv * (ggml_row_size(type_k, s.size) + ggml_row_size(type_v, s.size));
    const int n_layer = (int)std::clamp<size_t>(MOST_BYTES / bytes, 4, 40);
    ggml_context_ptr ctx(
            ggml_init({ (size_t)(n_layer * 8 + 16) * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_tensor * q =
            ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, s.size, s.n_query, s.n_head_kv * s.group, s.n_stream);
    ggml_tensor * mask = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, s.n_token, s.n_query, 1, s.n_stream);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    for (int i = 0; i < n_layer; ++i) {
        ggml_tensor * out = ggml_flash_attn_ext(ctx.get(), q, cache(ctx.get(), type_k, s), cache(ctx.get(), type_v, s),
                                                mask, 1 / std::sqrt((float)s.size), 0, 0);
        ggml_prec_set_acc(out, GGML_PREC_F32);
        if (is_marked) {
            kvtuner_mark(out);
        }
        ggml_build_forward_expand(graph, out);
    }
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
        if (t == mask) {
            ggml_backend_tensor_memset(t, 0, 0, ggml_nbytes(t));
        } else if (!t->view_src && t->op == GGML_OP_NONE) {
            fill(t);
        }
    }
    std::vector<double> times;
    for (int i = 0; i < 3 + N_TIMES; ++i) {
        ggml_backend_synchronize(backend);
        const auto start = std::chrono::steady_clock::now();
        for (int k = 0; k < 4; ++k) {
            ggml_backend_graph_compute_async(backend, graph);
        }
        ggml_backend_synchronize(backend);
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / n_layer / 4);
    }
    std::sort(times.begin() + 3, times.end());
    const double time = times[3 + N_TIMES / 2];
    printf("  %-8s %-7s %-7s %8lld x %-3lld %8.2f us %6.0f GB/s\n", is_marked ? "plan" : "no plan",
           ggml_type_name(type_k), ggml_type_name(type_v), (long long)s.n_token, (long long)s.n_stream, time * 1e6,
           bytes / time / 1e9);
    fflush(stdout);
    return time;
}

std::string argument(int argc, char ** argv, int i, const char * without) {
    return argc > i ? argv[i] : without;
}

}  // namespace

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    ggml_backend_ptr backend(ggml_backend_init_by_name(argument(argc, argv, 1, "CUDA0").c_str(), nullptr));
    if (!backend) {
        fprintf(stderr, "no device %s\n", argv[1]);
        return 2;
    }
    shape s = { atoi(argument(argc, argv, 2, "128").c_str()),
                atoi(argument(argc, argv, 3, "8").c_str()),
                atoi(argument(argc, argv, 4, "4").c_str()),
                0,
                0,
                atoi(argument(argc, argv, 7, "1").c_str()) };
    for (const std::string & length : split(argument(argc, argv, 5, "256,8192,32768,65536,8192x8,4096x32"), ',')) {
        const std::vector<std::string> parts = split(length, 'x');
        s.n_token = atoi(parts[0].c_str());
        s.n_stream = parts.size() > 1 ? atoi(parts[1].c_str()) : 1;
        time_of(backend.get(), s, GGML_TYPE_F16, GGML_TYPE_F16, false);
        for (const std::string & pair :
             split(argument(argc, argv, 6, "f16/f16,q8_0/q8_0,q8_0/q4_0,q4_0/q4_0,q4_0/q2_nl,q3_nl/q2_nl"), ',')) {
            const std::vector<std::string> types = split(pair, '/');
            time_of(backend.get(), s, type_named(types[0]), type_named(types[1]), true);
        }
    }
}
