// What the patches add to llama.cpp's KV cache: the rotation and the centers of each layer.

#include "kvtuner-cache.h"

#include "kvtuner-center.h"
#include "kvtuner-mark.h"

#include "llama-arch.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

bool kvtuner_shifts_whole_heads(const llama_kv_cache & cache, uint32_t il) {
    const ggml_type type = cache.get_k_storage(il)->type;
    return ggml_is_quantized(type) || type == GGML_TYPE_BF16 || cache.layer_center_k(il);
}

ggml_tensor * llama_kv_cache::get_v_storage(int32_t il) const {
    return layers[map_layer_ids.at(il)].v;
}

bool llama_kv_cache::is_rotated_k(int32_t il) const {
    // attention over compressed keys stores them as they are; index keys have hyperparameters of their own
    const bool is_compressed = hparams.is_mla() && &hparams == &model.hparams;
    const bool is_wanted = plan ? ggml_is_quantized(get_k_storage(il)->type) : is_rotated_upstream();
    return n_rot_k && !is_compressed && is_wanted;
}

bool llama_kv_cache::is_rotated_v(int32_t il) const {
    return n_rot_v && (plan ? ggml_is_quantized(get_v_storage(il)->type) : is_rotated_upstream());
}

bool llama_kv_cache::is_rotated_upstream() const {
    // upstream's graph of hybrid models with a sliding window leaves it out; deepseek4 counts as hybrid, but is none
    const bool is_hybrid = llm_arch_is_hybrid(model.arch) && model.arch != LLM_ARCH_DEEPSEEK4;
    return !is_hybrid || model.hparams.swa_type == LLAMA_SWA_TYPE_NONE;
}

bool llama_kv_cache_context::has_plan() const {
    return kv->plan != nullptr;
}

ggml_tensor * llama_kv_cache::layer_rot_k(ggml_tensor * rot, int32_t il) const {
    // without a plan a context shift turns back whatever upstream's does
    return is_rotated_k(il) || (!plan && !is_rotated_upstream()) ? rot : nullptr;
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

void llama_kv_cache::init_centers() {
    if (!plan || other) {
        return;
    }
    std::vector<kvtuner_centers::layer> stored;
    for (const kv_layer & layer : layers) {
        kvtuner_mark(layer.k);
        stored.push_back({ layer.il, layer.k });
    }
    centers.init(*plan, hparams, stored, hparams.no_alloc);
}

ggml_tensor * llama_kv_cache::layer_center_k(int32_t il) const {
    return (other ? other->centers : centers).k(get_k_storage(il));
}

ggml_tensor * llama_kv_cache::layer_center_v(int32_t il) const {
    return (other ? other->centers : centers).v(get_k_storage(il));
}

ggml_tensor * llama_kv_cache_context::layer_center_k(int32_t il) const {
    return kv->layer_center_k(il);
}

ggml_tensor * llama_kv_cache_context::layer_center_v(int32_t il) const {
    return kv->layer_center_v(il);
}
