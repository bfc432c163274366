// What a context really allocated, read from its tensors.

#include "kvtuner-model.h"
#include "kvtuner.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

struct layer_tensors {
    const ggml_tensor * k;
    const ggml_tensor * v;  // null where V is a view of K
};

using layer_map = std::map<uint32_t, layer_tensors>;

using cache_list = std::vector<const llama_kv_cache *>;

// the caches of keys and values; those of index keys, compressed keys and recurrent states are left out
cache_list caches_of(llama_memory_i * memory) {
    if (const auto * cache = dynamic_cast<llama_kv_cache *>(memory)) {
        return { cache };
    }
    if (const auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return { iswa->get_base(), iswa->get_swa() };
    }
    if (const auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return { hybrid->get_mem_attn() };
    }
    if (const auto * hybrid_iswa = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return caches_of(hybrid_iswa->get_mem_attn());
    }
    if (const auto * dsa = dynamic_cast<llama_kv_cache_dsa *>(memory)) {
        return { dsa->get_mla() };
    }
    if (const auto * msa = dynamic_cast<llama_kv_cache_msa *>(memory)) {
        return { msa->get_base() };
    }
    return {};
}

layer_map layers_of(const llama_context & ctx) {
    layer_map layers;
    for (const llama_kv_cache * cache : caches_of(ctx.get_memory())) {
        for (uint32_t il : cache->get_layer_ids()) {
            layers[il] = { cache->get_k_storage(il), cache->get_v_storage(il) };
        }
    }
    return layers;
}

struct cache_size {
    uint64_t bytes = 0;
    uint64_t values = 0;
};

cache_size size_of(const layer_map & layers) {
    cache_size size;
    std::set<const ggml_tensor *> seen;  // layers that share a cache count once
    for (const auto & [il, layer] : layers) {
        for (const ggml_tensor * tensor : { layer.k, layer.v }) {
            if (tensor && seen.insert(tensor).second) {
                size.bytes += ggml_nbytes(tensor);
                size.values += ggml_nelements(tensor);
            }
        }
    }
    return size;
}

// "0-3,7,9-11"
std::string ranges(const std::vector<uint32_t> & layers) {
    std::string out;
    for (size_t i = 0; i < layers.size();) {
        size_t last = i;
        while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) {
            ++last;
        }
        out += (out.empty() ? "" : ",") + std::to_string(layers[i]);
        out += last > i ? "-" + std::to_string(layers[last]) : "";
        i = last + 1;
    }
    return out;
}

int32_t type_of(const llama_context * ctx, int32_t il, const ggml_tensor * layer_tensors::*side) {
    const layer_map layers = layers_of(*ctx);
    const auto it = layers.find((uint32_t)il);
    const ggml_tensor * tensor = it == layers.end() ? nullptr : it->second.*side;
    return tensor ? (int32_t)tensor->type : -1;
}

}  // namespace

void kvtuner_log_context(const llama_context & ctx) {
    if (ctx.get_model().kvtuner.active && !ctx.get_memory()) {
        LLAMA_LOG_INFO("kvtuner: this model keeps no KV cache, its plan is ignored\n");
    }
    if (!kvtuner_has_plan(&ctx)) {
        return;
    }
    const layer_map layers = layers_of(ctx);
    std::map<std::pair<uint32_t, std::string>, std::vector<uint32_t>>
            groups;  // by first layer, so the order is the model's
    std::map<std::string, uint32_t> first;
    for (const auto & [il, layer] : layers) {
        const std::string pair = std::string(ggml_type_name(layer.k->type)) + "/" +
                                 ggml_type_name(layer.v ? layer.v->type : layer.k->type);
        groups[{ first.emplace(pair, il).first->second, pair }].push_back(il);
    }
    for (const auto & [key, ils] : groups) {
        LLAMA_LOG_INFO("kvtuner: %-14s layers %s\n", key.second.c_str(), ranges(ils).c_str());
    }
    const cache_size size = size_of(layers);
    LLAMA_LOG_INFO("kvtuner: %.4f bits per value, %.2f MiB (f16 %.2f MiB)\n", kvtuner_bits_per_value(&ctx),
                   size.bytes / 1048576.0, 2 * size.values / 1048576.0);
}

ggml_tensor * llama_kv_cache::get_v_storage(int32_t il) const {
    return layers[map_layer_ids.at(il)].v;
}

bool llama_kv_cache::is_rotated_k(int32_t il) const {
    return attn_rot_k && (!follows_plan || ggml_is_quantized(get_k_storage(il)->type));
}

bool llama_kv_cache::is_rotated_v(int32_t il) const {
    return attn_rot_v && (!follows_plan || ggml_is_quantized(get_v_storage(il)->type));
}

ggml_tensor * llama_kv_cache::layer_rot_k(ggml_tensor * rot, int32_t il) const {
    return is_rotated_k(il) ? rot : nullptr;
}

ggml_tensor * llama_kv_cache::layer_rot_v(ggml_tensor * rot, int32_t il) const {
    return is_rotated_v(il) ? rot : nullptr;
}

ggml_tensor * llama_kv_cache_context::layer_rot_k(ggml_tensor * rot, int32_t il) const {
    return kv->layer_rot_k(rot, il);
}

ggml_tensor * llama_kv_cache_context::layer_rot_v(ggml_tensor * rot, int32_t il) const {
    return kv->layer_rot_v(rot, il);
}

bool llama_kv_cache::any_quantized_k() const {
    return std::any_of(layers.begin(), layers.end(), [](const kv_layer & l) { return ggml_is_quantized(l.k->type); });
}

bool llama_kv_cache::any_quantized_v() const {
    return std::any_of(layers.begin(), layers.end(),
                       [](const kv_layer & l) { return l.v && ggml_is_quantized(l.v->type); });
}

int32_t kvtuner_n_layer(const llama_context * ctx) {
    return (int32_t)ctx->get_model().hparams.n_layer_all;
}

int32_t kvtuner_type_k(const llama_context * ctx, int32_t il) {
    return type_of(ctx, il, &layer_tensors::k);
}

int32_t kvtuner_type_v(const llama_context * ctx, int32_t il) {
    const int32_t type = type_of(ctx, il, &layer_tensors::v);
    return type < 0 ? kvtuner_type_k(ctx, il) : type;
}

uint64_t kvtuner_kv_bytes(const llama_context * ctx) {
    return size_of(layers_of(*ctx)).bytes;
}

bool kvtuner_has_plan(const llama_context * ctx) {
    const cache_list caches = caches_of(ctx->get_memory());
    return std::any_of(caches.begin(), caches.end(), [](const llama_kv_cache * cache) { return cache->follows_plan; });
}

double kvtuner_bits_per_value(const llama_context * ctx) {
    const cache_size size = size_of(layers_of(*ctx));
    return size.values ? 8.0 * size.bytes / size.values : 0.0;
}
