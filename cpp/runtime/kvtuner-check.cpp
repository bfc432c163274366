#include "kvtuner-check.h"

#include "kvtuner-backend.h"
#include "kvtuner-cache-only.h"
#include "kvtuner-layers.h"
#include "kvtuner-model.h"

#include "llama-arch.h"
#include "llama-model.h"

namespace {

bool is_remote(ggml_backend_dev_t device) {
    return std::string(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device))) == "RPC";
}

bool has_cache(const llama_model & model, uint32_t il) {
    return model.hparams.has_kv(il) && !model.hparams.is_recr(il);
}

std::string type_problem(uint32_t il, const char * side, ggml_type type, const std::string & reason) {
    return "layer " + std::to_string(il) + ": " + side + " type " + ggml_type_name(type) + " " + reason;
}

// why layer il cannot have the types of the plan; empty where it can
std::string layer_problem(const llama_model & model, uint32_t il, ggml_type type_k, ggml_type type_v, bool has_fa) {
    const llama_hparams & hparams = model.hparams;
    const auto block_problem = [&](const char * side, ggml_type type, uint32_t head_size) {
        return type_problem(il, side, type,
                            "has blocks of " + std::to_string(ggml_blck_size(type)) +
                                    " values, which do not divide the head size " + std::to_string(head_size) +
                                    ": use f16 there, or --kv-config none");
    };
    if (hparams.n_embd_head_k(il) % ggml_blck_size(type_k) != 0) {
        return block_problem("K", type_k, hparams.n_embd_head_k(il));
    }
    if (hparams.is_mla()) {
        return type_k == type_v
                       ? ""
                       : type_problem(il, "V", type_v,
                                      "differs from K type " + std::string(ggml_type_name(type_k)) +
                                              ", but this model keeps K and V in one tensor: give both the same type");
    }
    if (hparams.n_embd_head_v(il) % ggml_blck_size(type_v) != 0) {
        return block_problem("V", type_v, hparams.n_embd_head_v(il));
    }
    if (ggml_is_quantized(type_v) && !has_fa) {
        return type_problem(il, "V", type_v,
                            "needs FlashAttention, which is off: use -fa on or auto, or --kv-config none");
    }
    return "";
}

// why the device of layer il, or one of those that split its tensors, cannot keep a cache of these types; empty where
// all can
std::string device_problem(const llama_model & model, uint32_t il, ggml_type type_k, ggml_type type_v) {
    const auto problem = [&](const char * side, ggml_type type, int64_t row_size) -> std::string {
        ggml_backend_dev_t layer_device = kvtuner_is_cache_only(type) ? model.dev_layer(il) : nullptr;
        if (!layer_device) {
            return "";
        }
        for (ggml_backend_dev_t device : kvtuner_simple_devices(layer_device)) {
            if (!kvtuner_can_write(device, type, row_size)) {
                return type_problem(
                        il, side, type,
                        "is unknown to " + std::string(ggml_backend_dev_name(device)) +
                                ": use --no-kv-offload or another type" +
                                (is_remote(device) ? ", or run the ggml-rpc-server of this build there" : ""));
            }
        }
        return "";
    };
    const std::string of_k = problem("K", type_k, model.hparams.n_embd_k_gqa(il));
    return of_k.empty() ? problem("V", type_v, model.hparams.n_embd_v_gqa(il)) : of_k;
}

// whether layer il stores the ends of the plan
bool stores_ends(const llama_model & model, const kvtuner_plan & plan, uint32_t il) {
    const bool is_quantized = ggml_is_quantized(plan.type_k[il]) || ggml_is_quantized(plan.type_v[il]);
    return plan.ends.n_positions() > 0 && is_quantized && !model.hparams.is_mla() && !model.hparams.is_swa(il) &&
           kvtuner_can_read_exact(model);
}

// why the device of layer il cannot run it with a plan; empty where it can, or leaves it to others
std::string kernel_problem(const llama_model & model, const kvtuner_plan & plan, uint32_t il, ggml_type type_k,
                           ggml_type type_v) {
    const llama_hparams & hparams = model.hparams;
    ggml_backend_dev_t layer_device = model.dev_layer(il);
    if (!layer_device) {
        return "";
    }
    const ggml_type exact = stores_ends(model, plan, il) ? plan.ends.type : GGML_TYPE_COUNT;
    const bool has_centers = kvtuner_has_turned_center(plan, hparams, il) && kvtuner_can_read_exact(model);
    const bool has_sinks = model.layers.at(il).attn_sinks;
    const kvtuner_attention_layer layer = { il,
                                            hparams.n_embd_head_k(il),
                                            hparams.n_embd_head_v(il),
                                            hparams.n_head(il),
                                            hparams.n_head_kv(il),
                                            type_k,
                                            type_v,
                                            exact,
                                            has_centers,
                                            has_sinks };
    for (ggml_backend_dev_t device : kvtuner_simple_devices(layer_device)) {
        const std::string problem = kvtuner_kernels_problem(device, layer);
        if (!problem.empty()) {
            return "layer " + std::to_string(il) + ": " + problem + ", which " + kvtuner_pair_name(type_k, type_v) +
                   " needs: use other types there, --no-kv-offload, or --kv-config none";
        }
    }
    return "";
}

std::string centering_problem(const llama_model & model, const kvtuner_plan & plan, uint32_t il) {
    const std::string obstacle = plan.has_center_k(il) ? kvtuner_centering_obstacle(model, il) : "";
    return obstacle.empty() ? ""
                            : "layer " + std::to_string(il) + ": keys cannot be centered, since this model " +
                                      obstacle + ": use --no-kv-center";
}

std::string scaling_problem(const llama_model & model, const kvtuner_plan & plan, uint32_t il) {
    const std::string obstacle = plan.has_scale_k(il) ? kvtuner_scaling_obstacle(model) : "";
    return obstacle.empty() ? ""
                            : "layer " + std::to_string(il) + ": keys cannot be scaled, since this model " + obstacle +
                                      ": use a plan without scale_k, or --kv-config none";
}

// why layer il cannot store the ends of the plan; empty where it can, or goes without
std::string ends_problem(const llama_model & model, const kvtuner_plan & plan, uint32_t il) {
    if (!stores_ends(model, plan, il)) {
        return "";
    }
    const int64_t block = ggml_blck_size(plan.ends.type);
    const std::pair<const char *, uint32_t> sides[] = { { "K", model.hparams.n_embd_head_k(il) },
                                                        { "V", model.hparams.n_embd_head_v(il) } };
    for (const auto & [side, size] : sides) {
        if (size % block != 0) {
            return "layer " + std::to_string(il) + ": " + side + " ends of type " + ggml_type_name(plan.ends.type) +
                   " have blocks of " + std::to_string(block) + " values, which do not divide the head size " +
                   std::to_string(size) + ": use f16 for the ends, or --no-kv-ends";
        }
    }
    return "";
}

// attention with a bias per position goes without FlashAttention whatever the parameters say
bool can_flash_attn(const llama_model & model) {
    return model.arch != LLM_ARCH_T5;
}

}  // namespace

bool kvtuner_has_turned_center(const kvtuner_plan & plan, const llama_hparams & hparams, uint32_t il) {
    return plan.center_span > 0 && plan.has_center_k(il) && hparams.rope_type != LLAMA_ROPE_TYPE_NONE &&
           hparams.has_rope(il);
}

bool kvtuner_can_read_exact(const llama_model & model) {
    return model.arch != LLM_ARCH_MINIMAX_M3 && model.arch != LLM_ARCH_QWEN4EXP;
}

std::string kvtuner_plan_problem(const llama_model & model, const llama_context_params & params) {
    const bool has_fa = params.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_DISABLED && can_flash_attn(model);
    const auto [plan, error] = kvtuner_selected(model);
    if (!error.empty()) {
        return "the plan in the model's metadata is unusable: " + error + "; or use --kv-config none";
    }
    if (!plan) {
        return "";
    }
    if (model.arch == LLM_ARCH_DEEPSEEK4) {
        return std::string("architecture ") + llm_arch_name(model.arch) +
               " keeps compressed keys, to which no plan applies: use --kv-config none";
    }
    for (uint32_t il = 0; il < plan->type_k.size(); ++il) {
        if (!has_cache(model, il)) {
            continue;
        }
        const std::string found = layer_problem(model, il, plan->type_k[il], plan->type_v[il], has_fa);
        if (!found.empty()) {
            return found;
        }
        const std::string obstacle = centering_problem(model, *plan, il);
        if (!obstacle.empty()) {
            return obstacle;
        }
        const std::string of_scale = scaling_problem(model, *plan, il);
        if (!of_scale.empty()) {
            return of_scale;
        }
        const std::string of_ends = ends_problem(model, *plan, il);
        if (!of_ends.empty()) {
            return of_ends;
        }
    }
    return "";
}

std::string kvtuner_device_problem(const llama_model & model, const llama_context_params & params) {
    if (!params.offload_kqv) {
        return "";
    }
    const kvtuner_plan_ptr plan = kvtuner_plan_for(model, model.hparams, params.type_k, params.type_v);
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        if (!has_cache(model, il)) {
            continue;
        }
        const ggml_type type_k = kvtuner_layer_type_k(model, model.hparams, il, params.type_k, params.type_v);
        const ggml_type type_v = kvtuner_layer_type_v(model, model.hparams, il, params.type_k, params.type_v);
        const std::string found = device_problem(model, il, type_k, type_v);
        if (!found.empty()) {
            return found;
        }
        const std::string of_kernels = plan ? kernel_problem(model, *plan, il, type_k, type_v) : "";
        if (!of_kernels.empty()) {
            return of_kernels;
        }
    }
    return "";
}

std::string kvtuner_centering_obstacle(const llama_model & model, uint32_t il) {
    if (model.hparams.is_mla()) {
        return "keeps K and V in one tensor";
    }
    if (model.hparams.attn_soft_cap || model.arch == LLM_ARCH_GROK) {
        return "caps the attention logits";
    }
    if (model.layers.at(il).attn_sinks) {
        return "adds attention sinks to the softmax";
    }
    return "";
}

std::string kvtuner_scaling_obstacle(const llama_model & model) {
    if (model.hparams.is_mla()) {
        return "keeps K and V in one tensor";
    }
    // queries and keys meet in graphs of their own there
    const bool is_apart =
            model.arch == LLM_ARCH_MINIMAX_M3 || model.arch == LLM_ARCH_QWEN4EXP || model.arch == LLM_ARCH_DFLASH;
    return is_apart ? "has an attention of its own" : "";
}
