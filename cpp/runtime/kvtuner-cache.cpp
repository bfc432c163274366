#include "kvtuner-cache.h"

#include "kvtuner-mark.h"

#include "llama-arch.h"
#include "llama-graph.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

ggml_tensor * kvtuner_cache::v_storage(const llama_kv_cache & cache, uint32_t il) {
    return cache.layers[cache.map_layer_ids.at((int32_t)il)].v;
}

bool kvtuner_cache::any_quantized_k(const llama_kv_cache & cache) {
    const auto is_quantized = [](const auto & layer) { return ggml_is_quantized(layer.k->type); };
    return std::any_of(cache.layers.begin(), cache.layers.end(), is_quantized);
}

bool kvtuner_cache::any_quantized_v(const llama_kv_cache & cache) {
    const auto is_quantized = [](const auto & layer) { return layer.v && ggml_is_quantized(layer.v->type); };
    return std::any_of(cache.layers.begin(), cache.layers.end(), is_quantized);
}

bool kvtuner_cache::is_rotated_k(const llama_kv_cache & cache) {
    // attention over compressed keys stores them as they are; index keys have hyperparameters of their own
    const bool is_compressed = cache.hparams.is_mla() && &cache.hparams == &cache.model.hparams;
    return cache.n_rot_k && !is_compressed && (cache.plan || is_rotated_upstream(cache));
}

bool kvtuner_cache::is_rotated_v(const llama_kv_cache & cache) {
    return cache.n_rot_v && (cache.plan || is_rotated_upstream(cache));
}

bool kvtuner_cache::is_rotated_upstream(const llama_kv_cache & cache) {
    // upstream's graph of hybrid models with a sliding window leaves it out; deepseek4 counts as hybrid, but is none
    const bool is_hybrid = llm_arch_is_hybrid(cache.model.arch) && cache.model.arch != LLM_ARCH_DEEPSEEK4;
    return !is_hybrid || cache.model.hparams.swa_type == LLAMA_SWA_TYPE_NONE;
}

void kvtuner_cache::init(llama_kv_cache & cache) {
    if (!cache.plan || cache.other) {
        return;
    }
    std::vector<kvtuner_centers::layer> stored;
    for (const auto & layer : cache.layers) {
        kvtuner_mark(layer.k);
        stored.push_back({ layer.il, layer.k });
    }
    const uint32_t n_rot = is_rotated_k(cache) ? cache.n_rot_k : 0;
    cache.centers.init(*cache.plan, cache.hparams, stored, n_rot, cache.hparams.no_alloc);
}

ggml_tensor * kvtuner_cache::center(const llama_kv_cache & cache, uint32_t il) {
    return (cache.other ? cache.other->centers : cache.centers).of(cache.get_k_storage((int32_t)il));
}

ggml_tensor * kvtuner_cache::shifted_rotation(const llama_kv_cache & cache, ggml_tensor * rotation) {
    // without a plan a context shift turns back whatever upstream's does
    return is_rotated_k(cache) || (!cache.plan && !is_rotated_upstream(cache)) ? rotation : nullptr;
}

bool kvtuner_cache::shifts_whole_heads(const llama_kv_cache & cache, uint32_t il) {
    const ggml_type type = cache.get_k_storage((int32_t)il)->type;
    return ggml_is_quantized(type) || type == GGML_TYPE_BF16 || (cache.plan && is_rotated_k(cache)) ||
           center(cache, il);
}

void kvtuner_cache::build_rotation(ggml_context * ctx, const llama_kv_cache_iswa_context & context,
                                   llm_graph_input_attn_kv_iswa & input) {
    if (context.get_base()->kv->plan) {
        input.self_k_rot = context.get_base()->build_input_k_rot(ctx);
        input.self_v_rot = context.get_base()->build_input_v_rot(ctx);
        input.self_k_rot_swa = context.get_swa()->build_input_k_rot(ctx);
        input.self_v_rot_swa = context.get_swa()->build_input_v_rot(ctx);
    }
}
