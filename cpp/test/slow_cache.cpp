#include "slow_cache.h"

#include "kvtuner-cache.h"
#include "kvtuner-layers.h"
#include "kvtuner-lowbit.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>

static constexpr int64_t MIN_ROTATION = 64;

void slow_rotate(float * values, int64_t n_values, int64_t n) {
    const float scale = 1.0f / std::sqrt((float)n);
    for (float * block = values; block < values + n_values; block += n) {
        for (int64_t step = 1; step < n; step *= 2) {
            for (int64_t i = 0; i < n; ++i) {
                if ((i & step) == 0) {
                    const float a = block[i];
                    const float b = block[i + step];
                    block[i] = a + b;
                    block[i + step] = a - b;
                }
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            block[i] *= scale;
        }
    }
}

void slow_round(const slow_rounding & rounding, float * values, int64_t n_values) {
    const ggml_type_traits * traits = ggml_get_type_traits(rounding.type);
    std::vector<uint8_t> packed(ggml_row_size(rounding.type, n_values));
    std::vector<float> center = rounding.center;
    for (size_t i = 0; i < rounding.scale.size(); ++i) {
        values[i] *= rounding.scale[i];
    }
    for (size_t i = 0; i < std::min(center.size(), rounding.scale.size()); ++i) {
        center[i] *= rounding.scale[i];
    }
    if (rounding.rotation) {
        slow_rotate(values, n_values, rounding.rotation);
        slow_rotate(center.data(), (int64_t)center.size(), rounding.rotation);
    }
    for (size_t i = 0; i < center.size(); ++i) {
        values[i] -= center[i];
    }
    kvtuner_from_float_ref(rounding.type, rounding.is_v)(values, packed.data(), n_values);
    traits->to_float(packed.data(), values, n_values);
    for (size_t i = 0; i < center.size(); ++i) {
        values[i] += center[i];
    }
    if (rounding.rotation) {
        slow_rotate(values, n_values, rounding.rotation);
    }
    for (size_t i = 0; i < rounding.scale.size(); ++i) {
        values[i] /= rounding.scale[i];
    }
}

// the one head size of all layers of a cache, or 0
static int64_t common_head_size(const llama_hparams & hparams, const std::vector<uint32_t> & layers,
                                uint32_t (llama_hparams::*head_size)(uint32_t) const) {
    const int64_t size = layers.empty() ? 0 : (hparams.*head_size)(layers[0]);
    for (uint32_t il : layers) {
        if ((hparams.*head_size)(il) != size) {
            return 0;
        }
    }
    return size;
}

// whether the plan quantizes one of the layers
static bool any_quantized(const std::vector<ggml_type> & types, const std::vector<uint32_t> & layers) {
    return std::any_of(layers.begin(), layers.end(), [&](uint32_t il) { return ggml_is_quantized(types[il]); });
}

// as the cache decides: only where all its heads have one size, which 64 divides like that of the model's first layer
static bool can_rotate(int64_t head_size, uint32_t first_head_size) {
    return head_size > 0 && head_size % MIN_ROTATION == 0 && first_head_size % MIN_ROTATION == 0;
}

static int64_t rotation_of_k(const llama_hparams & hparams, const std::vector<uint32_t> & layers) {
    const int64_t size = common_head_size(hparams, layers, &llama_hparams::n_embd_head_k);
    if (hparams.is_mla() || !can_rotate(size, hparams.n_embd_head_k())) {
        return 0;
    }
    int64_t rotation = MIN_ROTATION;
    while (size % (2 * rotation) == 0) {
        rotation *= 2;
    }
    return rotation;
}

static int64_t rotation_of_v(const llama_hparams & hparams, const std::vector<uint32_t> & layers) {
    const int64_t size = common_head_size(hparams, layers, &llama_hparams::n_embd_head_v);
    return can_rotate(size, hparams.n_embd_head_v()) ? MIN_ROTATION : 0;
}

// whether all that layer il reads is as it was before quantization: ends reach over all positions or there are none
static bool is_exact(const llama_context & ctx, const kvtuner_plan & plan, uint32_t il, bool has_v) {
    const llama_model & model = ctx.get_model();
    const bool is_quantized = ggml_is_quantized(plan.type_k[il]) || ggml_is_quantized(plan.type_v[il]);
    const bool has_flash_attn = model.arch != LLM_ARCH_GROK && model.arch != LLM_ARCH_T5;
    const bool is_sparse = model.arch == LLM_ARCH_MINIMAX_M3 || model.arch == LLM_ARCH_QWEN4EXP;
    return plan.ends.n_positions() > 0 && is_quantized && has_v && has_flash_attn && !is_sparse &&
           !model.hparams.is_swa(il);
}

// what is read then
static kvtuner_plan exact_plan(kvtuner_plan plan) {
    std::fill(plan.type_k.begin(), plan.type_k.end(), plan.ends.type);
    std::fill(plan.type_v.begin(), plan.type_v.end(), plan.ends.type);
    return plan;
}

void slow_cache::attach(llama_context_params & params) {
    params.type_k = GGML_TYPE_F32;
    params.type_v = GGML_TYPE_F32;
    params.cb_eval = on_node;
    params.cb_eval_user_data = this;
}

void slow_cache::follow(const llama_context & ctx, const kvtuner_plan & plan) {
    const llama_hparams & hparams = ctx.get_model().hparams;
    for (const llama_kv_cache * cache : kvtuner_caches_of(ctx.get_memory())) {
        const std::vector<uint32_t> layers = cache->get_layer_ids();
        const int64_t rotation_k = any_quantized(plan.type_k, layers) ? rotation_of_k(hparams, layers) : 0;
        const int64_t rotation_v = any_quantized(plan.type_v, layers) ? rotation_of_v(hparams, layers) : 0;
        for (uint32_t il : layers) {
            const bool reads_exact = is_exact(ctx, plan, il, kvtuner_cache::v_storage(*cache, il));
            follow_layer(*cache, il, reads_exact ? exact_plan(plan) : plan, rotation_k, rotation_v);
        }
    }
}

void slow_cache::follow_layer(const llama_kv_cache & cache, uint32_t il, const kvtuner_plan & plan, int64_t rotation_k,
                              int64_t rotation_v) {
    const auto add = [&](const ggml_tensor * tensor, const slow_rounding & rounding) {
        if (tensor) {  // with compressed keys V is a part of K
            order.push_back(tensor);
            tensors[tensor] = rounding;
        }
    };
    const auto of_layer = [il](const auto & vectors) { return vectors.empty() ? std::vector<float>() : vectors[il]; };
    add(cache.get_k_storage(il),
        { plan.type_k[il], rotation_k, of_layer(plan.scale_k), of_layer(plan.center_k), false });
    add(kvtuner_cache::v_storage(cache, il), { plan.type_v[il], rotation_v, {}, {}, true });
}

void slow_cache::forget_a_rotation() {
    if (slow_rounding * first = first_quantized([](const slow_rounding & r) { return r.rotation != 0; })) {
        first->rotation = 0;
    }
}

void slow_cache::forget_a_center() {
    if (slow_rounding * first = first_quantized([](const slow_rounding & r) { return !r.center.empty(); })) {
        first->center.clear();
    }
}

void slow_cache::forget_a_scale() {
    if (slow_rounding * first = first_quantized([](const slow_rounding & r) { return !r.scale.empty(); })) {
        first->scale.clear();
    }
}

slow_rounding * slow_cache::first_quantized(bool (*has)(const slow_rounding &)) {
    for (const ggml_tensor * tensor : order) {
        slow_rounding & rounding = tensors.at(tensor);
        if (has(rounding) && ggml_is_quantized(rounding.type)) {
            return &rounding;
        }
    }
    return nullptr;
}

const slow_rounding * slow_cache::find(const ggml_tensor * node) const {
    const bool writes = node->op == GGML_OP_SET_ROWS || node->op == GGML_OP_ROPE;
    const auto it = writes && node->view_src ? tensors.find(node->view_src) : tensors.end();
    return it == tensors.end() ? nullptr : &it->second;
}

// a transposed V is written value by value: its rows have one value, and its types no blocks
void slow_cache::on_set_rows(ggml_tensor * node, const slow_rounding & rounding) const {
    const ggml_tensor * rows = node->src[1];
    for (int64_t i = 0; i < ggml_nelements(rows); ++i) {
        const int64_t row = ((const int64_t *)rows->data)[i];
        slow_round(rounding, (float *)((char *)node->data + row * node->nb[1]), node->ne[0]);
    }
}

bool slow_cache::on_node(ggml_tensor * node, bool ask, void * self) {
    const slow_cache & cache = *(const slow_cache *)self;
    const slow_rounding * rounding = cache.find(node);
    if (ask || !rounding) {
        return rounding || !ask;
    }
    if (node->op == GGML_OP_SET_ROWS) {
        cache.on_set_rows(node, *rounding);
    } else {  // a shift turns every row of the cache
        ggml_tensor * tensor = node->view_src;
        for (int64_t row = 0; row < tensor->ne[1] * tensor->ne[2]; ++row) {
            slow_round(*rounding, (float *)((char *)tensor->data + row * tensor->nb[1]), tensor->ne[0]);
        }
    }
    return true;
}
