#include "kvtuner-layers.h"

#include "kvtuner-cache.h"

#include "llama-context.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

kvtuner_cache_list kvtuner_caches_of(llama_memory_i * memory) {
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
        return kvtuner_caches_of(hybrid_iswa->get_mem_attn());
    }
    if (const auto * dsa = dynamic_cast<llama_kv_cache_dsa *>(memory)) {
        return { dsa->get_mla() };
    }
    if (const auto * dsa_iswa = dynamic_cast<llama_kv_cache_dsa_iswa *>(memory)) {
        return { dsa_iswa->get_dsa()->get_mla(), dsa_iswa->get_swa() };
    }
    if (const auto * msa = dynamic_cast<llama_kv_cache_msa *>(memory)) {
        return { msa->get_base() };
    }
    return {};
}

kvtuner_layer_map kvtuner_layers_of(const llama_context & ctx) {
    kvtuner_layer_map layers;
    for (const llama_kv_cache * cache : kvtuner_caches_of(ctx.get_memory())) {
        for (uint32_t il : cache->get_layer_ids()) {
            const kvtuner_exact_rows & exact = kvtuner_cache::exact(*cache);
            const kvtuner_exact_rows::sides rows =
                    exact.has(il) ? exact.of(il) : kvtuner_exact_rows::sides{ nullptr, nullptr };
            const kvtuner_center * center = kvtuner_cache::center(*cache, il);
            layers[il] = { cache->get_k_storage(il),
                           kvtuner_cache::v_storage(*cache, il),
                           center != nullptr,
                           center ? center->table : nullptr,
                           kvtuner_cache::scale(*cache, il) != nullptr,
                           rows.k,
                           rows.v };
        }
    }
    return layers;
}

std::string kvtuner_pair_name(ggml_type type_k, ggml_type type_v) {
    return std::string(ggml_type_name(type_k)) + "/" + ggml_type_name(type_v);
}

std::string kvtuner_ranges(const std::vector<uint32_t> & layers) {
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
