// What a context really allocated, read from its tensors.

#include "kvtuner-backend.h"
#include "kvtuner-layers.h"
#include "kvtuner-model.h"
#include "kvtuner.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

struct cache_size {
    uint64_t bytes = 0;
    uint64_t values = 0;
};

// layers that share a cache count once
std::set<const ggml_tensor *> tensors_of(const kvtuner_layer_map & layers) {
    std::set<const ggml_tensor *> tensors;
    for (const auto & [il, layer] : layers) {
        tensors.insert({ layer.k, layer.v });
    }
    tensors.erase(nullptr);
    return tensors;
}

cache_size size_of(const kvtuner_layer_map & layers) {
    cache_size size;
    for (const ggml_tensor * tensor : tensors_of(layers)) {
        size.bytes += ggml_nbytes(tensor);
        size.values += ggml_nelements(tensor);
    }
    return size;
}

uint64_t ends_bytes_of(const kvtuner_layer_map & layers) {
    uint64_t bytes = 0;
    for (const auto & [il, layer] : layers) {
        bytes += layer.exact_k ? ggml_nbytes(layer.exact_k) + ggml_nbytes(layer.exact_v) : 0;
    }
    return bytes;
}

uint64_t centers_bytes_of(const kvtuner_layer_map & layers) {
    std::set<const ggml_tensor *> counted;  // layers that share a cache share its table
    uint64_t bytes = 0;
    for (const auto & [il, layer] : layers) {
        bytes += layer.centers && counted.insert(layer.centers).second ? ggml_nbytes(layer.centers) : 0;
    }
    return bytes;
}

const kvtuner_plan * plan_of(const llama_context & ctx) {
    for (const llama_kv_cache * cache : kvtuner_caches_of(ctx.get_memory())) {
        if (cache->plan) {
            return cache->plan.get();
        }
    }
    return nullptr;
}

int32_t type_of(const llama_context * ctx, int32_t il, const ggml_tensor * kvtuner_layer_tensors::*side) {
    const kvtuner_layer_map layers = kvtuner_layers_of(*ctx);
    const auto it = layers.find((uint32_t)il);
    const ggml_tensor * tensor = it == layers.end() ? nullptr : it->second.*side;
    return tensor ? (int32_t)tensor->type : -1;
}

template <typename predicate>
std::string ranges_where(const kvtuner_layer_map & layers, const predicate & is_meant) {
    std::vector<uint32_t> ils;
    for (const auto & [il, layer] : layers) {
        if (is_meant(layer)) {
            ils.push_back(il);
        }
    }
    return kvtuner_ranges(ils);
}

void log_centers(const kvtuner_layer_map & layers, uint32_t span) {
    const std::string centered = ranges_where(layers, [](const auto & layer) { return layer.is_centered; });
    if (centered.empty()) {
        return;
    }
    const uint64_t bytes = centers_bytes_of(layers);
    if (bytes == 0) {
        LLAMA_LOG_INFO("kvtuner: keys centered in layers %s\n", centered.c_str());
    } else {
        LLAMA_LOG_INFO("kvtuner: keys centered in layers %s, turned every %u positions (%.2f MiB)\n", centered.c_str(),
                       span, bytes / 1048576.0);
    }
}

void log_scales(const kvtuner_layer_map & layers) {
    const std::string scaled = ranges_where(layers, [](const auto & layer) { return layer.is_scaled; });
    if (!scaled.empty()) {
        LLAMA_LOG_INFO("kvtuner: keys scaled in layers %s\n", scaled.c_str());
    }
}

void log_ends(const llama_context & ctx, const kvtuner_layer_map & layers) {
    const std::string with_ends = ranges_where(layers, [](const auto & layer) { return layer.exact_k; });
    if (with_ends.empty()) {
        return;
    }
    const kvtuner_ends & ends = plan_of(ctx)->ends;
    LLAMA_LOG_INFO("kvtuner: exact ends: %u first and %u last positions in %s, layers %s\n", ends.first, ends.last,
                   ggml_type_name(ends.type), with_ends.c_str());
}

// exact ends and tables of centers
void log_beside(const kvtuner_layer_map & layers, const cache_size & size) {
    const uint64_t bytes = ends_bytes_of(layers) + centers_bytes_of(layers);
    if (bytes > 0) {
        LLAMA_LOG_INFO("kvtuner: with them %.4f bits per value in this context, %.2f MiB more\n",
                       8.0 * (size.bytes + bytes) / size.values, bytes / 1048576.0);
    }
}

}  // namespace

void kvtuner_log_context(const llama_context & ctx) {
    if (kvtuner_selected(ctx.get_model()).plan && kvtuner_caches_of(ctx.get_memory()).empty()) {
        LLAMA_LOG_INFO("kvtuner: this model keeps no KV cache, its plan is ignored\n");
    }
    if (!kvtuner_has_plan(&ctx)) {
        return;
    }
    const kvtuner_layer_map layers = kvtuner_layers_of(ctx);
    std::map<std::pair<uint32_t, std::string>, std::vector<uint32_t>>
            groups;  // by first layer, so the order is the model's
    std::map<std::string, uint32_t> first;
    for (const auto & [il, layer] : layers) {
        const std::string pair = kvtuner_pair_name(layer.k->type, layer.v ? layer.v->type : layer.k->type);
        groups[{ first.emplace(pair, il).first->second, pair }].push_back(il);
    }
    for (const auto & [key, ils] : groups) {
        LLAMA_LOG_INFO("kvtuner: %-14s layers %s\n", key.second.c_str(), kvtuner_ranges(ils).c_str());
    }
    log_scales(layers);
    log_centers(layers, plan_of(ctx)->center_span);
    log_ends(ctx, layers);
    const cache_size size = size_of(layers);
    log_beside(layers, size);
    LLAMA_LOG_INFO("kvtuner: %.4f bits per value, %.2f MiB (f16 %.2f MiB)\n", kvtuner_bits_per_value(&ctx),
                   kvtuner_kv_bytes(&ctx) / 1048576.0, 2 * size.values / 1048576.0);
    kvtuner_warn_slow_layers(ctx);
}

int32_t kvtuner_n_layer(const llama_context * ctx) {
    return (int32_t)ctx->get_model().hparams.n_layer_all;
}

int32_t kvtuner_type_k(const llama_context * ctx, int32_t il) {
    return type_of(ctx, il, &kvtuner_layer_tensors::k);
}

int32_t kvtuner_type_v(const llama_context * ctx, int32_t il) {
    const int32_t type = type_of(ctx, il, &kvtuner_layer_tensors::v);
    return type < 0 ? kvtuner_type_k(ctx, il) : type;
}

bool kvtuner_is_centered_k(const llama_context * ctx, int32_t il) {
    const kvtuner_layer_map layers = kvtuner_layers_of(*ctx);
    const auto it = layers.find((uint32_t)il);
    return it != layers.end() && it->second.is_centered;
}

bool kvtuner_is_scaled_k(const llama_context * ctx, int32_t il) {
    const kvtuner_layer_map layers = kvtuner_layers_of(*ctx);
    const auto it = layers.find((uint32_t)il);
    return it != layers.end() && it->second.is_scaled;
}

uint64_t kvtuner_kv_bytes(const llama_context * ctx) {
    const kvtuner_layer_map layers = kvtuner_layers_of(*ctx);
    return size_of(layers).bytes + ends_bytes_of(layers);
}

uint64_t kvtuner_centers_bytes(const llama_context * ctx) {
    return centers_bytes_of(kvtuner_layers_of(*ctx));
}

uint64_t kvtuner_exact_ends_bytes(const llama_context * ctx) {
    return ends_bytes_of(kvtuner_layers_of(*ctx));
}

bool kvtuner_exact_ends(const llama_context * ctx, uint32_t * first, uint32_t * last, int32_t * type) {
    if (kvtuner_exact_ends_bytes(ctx) == 0) {
        return false;
    }
    const kvtuner_ends & ends = plan_of(*ctx)->ends;
    *first = ends.first;
    *last = ends.last;
    *type = ends.type;
    return true;
}

bool kvtuner_has_exact_ends(const llama_context * ctx, int32_t il) {
    const kvtuner_layer_map layers = kvtuner_layers_of(*ctx);
    const auto it = layers.find((uint32_t)il);
    return it != layers.end() && it->second.exact_k;
}

uint64_t kvtuner_kv_bytes_used(const llama_context * ctx, uint64_t n_tokens) {
    uint64_t bytes = 0;
    for (const ggml_tensor * tensor : tensors_of(kvtuner_layers_of(*ctx))) {
        bytes += tensor->nb[1] * std::min(n_tokens, (uint64_t)tensor->ne[1]);  // a sliding window keeps no more
    }
    return bytes;
}

bool kvtuner_has_plan(const llama_context * ctx) {
    return plan_of(*ctx) != nullptr;
}

size_t kvtuner_fingerprint(const llama_context * ctx, char * text, size_t text_size) {
    const kvtuner_plan * plan = plan_of(*ctx);
    return (size_t)snprintf(text, text_size, "%s", plan ? kvtuner_plan_fingerprint(*plan).c_str() : "");
}

const char * kvtuner_source(const llama_context * ctx) {
    const kvtuner_plan * plan = plan_of(*ctx);
    return plan ? plan->source.c_str() : "none";
}

double kvtuner_bits_per_value(const llama_context * ctx) {
    const cache_size size = size_of(kvtuner_layers_of(*ctx));
    return size.values ? 8.0 * size.bytes / size.values : 0.0;
}
