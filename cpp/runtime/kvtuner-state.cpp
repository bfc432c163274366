#include "kvtuner-state.h"

#include "kvtuner-cache.h"
#include "kvtuner.h"

#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// stands where upstream has the number of streams, which is never as large
static constexpr uint32_t MAGIC = 0x6b767431;  // "kvt1"
static constexpr uint32_t MAX_BYTES = 1u << 20;

// "+center:5b1c07e2", or "+center:5b1c07e2/256" with the span of its blocks
static std::string center_name(const kvtuner_center * center, uint32_t span) {
    char text[32];
    snprintf(text, sizeof(text), center->table ? "+center:%08x/%u" : "+center:%08x", center->digest, span);
    return text;
}

static std::string scale_name(const kvtuner_key_scale * scale) {
    char text[32] = "";
    if (scale) {
        snprintf(text, sizeof(text), "+scale:%08x", scale->digest);
    }
    return text;
}

static std::string side_name(const ggml_tensor * tensor, bool is_rotated, const std::string & vectors) {
    if (!tensor) {
        return "-";
    }
    return ggml_type_name(tensor->type) + std::string(is_rotated ? "+rot" : "") + vectors;
}

// "q8_0+rot+center:5b1c07e2+scale:09f3a1c4/q4_0+rot": the types, the rotation, the center and the scale of one layer
static std::string describe_layer(const llama_kv_cache & cache, uint32_t il) {
    const kvtuner_center * center = kvtuner_cache::center(cache, il);
    return side_name(cache.get_k_storage(il), kvtuner_cache::is_rotated_k(cache),
                     (center ? center_name(center, cache.plan->center_span) : "") +
                             scale_name(kvtuner_cache::key_scale(cache, il))) +
           "/" + side_name(kvtuner_cache::v_storage(cache, il), kvtuner_cache::is_rotated_v(cache), "");
}

// "0:q8_0+rot/q4_0+rot 1:f16+rot/q4_0+rot ..."
static std::string describe(const llama_kv_cache & cache) {
    std::string text;
    for (uint32_t il : cache.get_layer_ids()) {
        text += (text.empty() ? "" : " ") + std::to_string(il) + ":" + describe_layer(cache, il);
    }
    return text + kvtuner_cache::ends_text(cache);
}

// such a cache holds what upstream's would, whether by a plan or not
static bool is_uniform(const llama_kv_cache & cache) {
    const std::vector<uint32_t> layers = cache.get_layer_ids();
    const bool is_rotated = kvtuner_cache::is_rotated_k(cache) || kvtuner_cache::is_rotated_v(cache);
    return (!is_rotated || kvtuner_cache::is_rotated_upstream(cache)) && kvtuner_cache::ends_text(cache).empty() &&
           std::all_of(layers.begin(), layers.end(), [&](uint32_t il) {
               return !kvtuner_cache::center(cache, il) && !kvtuner_cache::key_scale(cache, il) &&
                      describe_layer(cache, il) == describe_layer(cache, layers.front());
           });
}

// Callers of the state functions learn only that a load failed.
static thread_local std::string refusal;

[[noreturn]] static void refuse(const std::string & saved, const std::string & mine) {
    refusal = "the state was saved with the KV cache plan [" + saved + "], but this context has the plan [" + mine +
              "]: use the kv-config that it was saved with";
    throw std::runtime_error(refusal);
}

const char * kvtuner_take_state_refusal() {
    static thread_local std::string taken;
    taken = std::move(refusal);
    refusal.clear();
    return taken.c_str();
}

static std::string read_plan(llama_io_read_i & io) {
    uint32_t n_bytes;
    io.read(&n_bytes, sizeof(n_bytes));
    if (n_bytes > MAX_BYTES) {
        throw std::runtime_error("the state holds a KV cache plan of " + std::to_string(n_bytes) +
                                 " bytes: the file is damaged");
    }
    std::string text(n_bytes, '\0');
    io.read(&text[0], n_bytes);
    std::replace_if(text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
    return text;
}

void kvtuner_state_write(const llama_kv_cache & cache, llama_io_write_i & io) {
    if (!cache.plan) {
        return;
    }
    const std::string plan = describe(cache);
    const uint32_t n_bytes = (uint32_t)plan.size();
    io.write(&MAGIC, sizeof(MAGIC));
    io.write(&n_bytes, sizeof(n_bytes));
    io.write(plan.data(), plan.size());
}

void kvtuner_state_begin() {
    refusal.clear();
    kvtuner_take_reason();
}

uint32_t kvtuner_state_read(const llama_kv_cache & cache, llama_io_read_i & io) {
    uint32_t n_stream;
    io.read(&n_stream, sizeof(n_stream));
    if (n_stream != MAGIC) {
        if (cache.plan && !is_uniform(cache)) {
            refuse("none", describe(cache));
        }
        return n_stream;
    }
    const std::string saved = read_plan(io);
    const std::string mine = describe(cache);
    if (saved != mine) {
        refuse(saved, mine);
    }
    io.read(&n_stream, sizeof(n_stream));
    return n_stream;
}
