#include "kvtuner-backend.h"

#include "kvtuner-attention-device.h"
#include "kvtuner-cache-only.h"
#include "kvtuner-layers.h"
#include "kvtuner-mark.h"
#include "kvtuner-meta.h"

#include "ggml-cpp.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <map>

namespace {

using layers_by_pair = std::map<std::string, std::vector<uint32_t>>;

// tokens in the probed cache: back ends have their fast kernels for multiples of it
constexpr int64_t N_KV = 256;
constexpr size_t N_TENSORS = 16;  // of a probe

// one new token over a cache of these types
struct attention_probe {
    ggml_context_ptr ctx;
    ggml_tensor * node;

    attention_probe(const kvtuner_attention_layer & layer, ggml_type type_k, ggml_type type_v)
        : ctx(ggml_init({ N_TENSORS * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true })) {
        ggml_tensor * q = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, layer.head_size_k, 1, layer.n_head, 1);
        ggml_tensor * mask = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, N_KV, 1, 1, 1);
        node = ggml_flash_attn_ext(ctx.get(), q, side(type_k, layer.head_size_k, layer.n_head_kv),
                                   side(type_v, layer.head_size_v, layer.n_head_kv), mask, 1.0f, 0.0f, 0.0f);
    }

    // what the node reads beside the cache
    void add_beside(const kvtuner_attention_layer & layer) {
        if (layer.has_sinks) {
            ggml_flash_attn_ext_add_sinks(node, ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, layer.n_head));
        }
        if (layer.type_exact != GGML_TYPE_COUNT) {
            node->src[KVTUNER_EXACT_AT] = side(layer.type_exact, layer.head_size_k, layer.n_head_kv);
            node->src[KVTUNER_EXACT_AT + 1] = side(layer.type_exact, layer.head_size_v, layer.n_head_kv);
            node->src[KVTUNER_EXACT_AT + 2] = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, N_KV, 1, 1, 1);
        }
        if (layer.has_centers) {
            const int64_t n = (int64_t)layer.head_size_k * layer.n_head_kv;
            node->src[KVTUNER_CENTERS_AT] = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n, 1);
        }
    }

private:
    // all heads of a token side by side
    ggml_tensor * side(ggml_type type, int64_t size, int64_t n_head) {
        ggml_tensor * all = ggml_new_tensor_2d(ctx.get(), type, size * n_head, N_KV);
        return ggml_view_4d(ctx.get(), all, size, N_KV, n_head, 1, all->nb[1], ggml_row_size(type, size),
                            all->nb[1] * N_KV, 0);
    }
};

bool runs_attention(ggml_backend_dev_t device, const kvtuner_attention_layer & layer, ggml_type type_k,
                    ggml_type type_v) {
    return ggml_backend_dev_supports_op(device, attention_probe(layer, type_k, type_v).node);
}

// what a back end tells of its kernels by this name; null for those that have none of ours
template <typename FUNCTION>
FUNCTION told_by(ggml_backend_dev_t device, const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    return reg ? (FUNCTION)ggml_backend_reg_get_proc_address(reg, name) : nullptr;
}

auto * attention_is_fast(ggml_backend_dev_t device) {
    return told_by<kvtuner_attention_is_fast_t>(device, KVTUNER_ATTENTION_IS_FAST);
}

// whether all devices behind this one attend the layer by kernels of ours
bool is_attended_fast(ggml_backend_dev_t device, const kvtuner_attention_layer & layer) {
    const attention_probe probe(layer, layer.type_k, layer.type_v);
    kvtuner_mark(probe.node);
    const auto devices = kvtuner_simple_devices(device);
    return std::all_of(devices.begin(), devices.end(), [&](ggml_backend_dev_t simple) {
        const auto is_fast = attention_is_fast(simple);
        return is_fast && is_fast(simple, probe.node);
    });
}

std::string compiled_pairs_of_one(ggml_backend_dev_t device) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    auto * get = (ggml_backend_get_features_t)ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
    for (ggml_backend_feature * feature = get ? get(reg) : nullptr; feature && feature->name; ++feature) {
        if (std::string(feature->name) == "FA_QUANTS") {
            return feature->value;
        }
    }
    return "";
}

// the pairs whose kernels were compiled into a CUDA build: "all", or "q8_0-q8_0,f16-f16,..."; empty for other back ends
std::string compiled_pairs(ggml_backend_dev_t device) {
    for (ggml_backend_dev_t simple : kvtuner_simple_devices(device)) {
        const std::string pairs = compiled_pairs_of_one(simple);
        if (!pairs.empty()) {
            return pairs;
        }
    }
    return "";
}

// upstream's own name of a device that splits tensors tells nothing of those behind it
std::string name_of(ggml_backend_dev_t device) {
    std::string name;
    for (ggml_backend_dev_t simple : kvtuner_simple_devices(device)) {
        name += (name.empty() ? "" : "+") + std::string(ggml_backend_dev_name(simple));
    }
    return name;
}

std::string option_name(ggml_type type_k, ggml_type type_v) {
    return std::string(ggml_type_name(type_k)) + "-" + ggml_type_name(type_v);
}

bool is_compiled(const std::string & pairs, ggml_type type_k, ggml_type type_v) {
    const bool is_plain = !ggml_is_quantized(type_k) && !ggml_is_quantized(type_v);
    return pairs.empty() || pairs == "all" || is_plain ||
           ("," + pairs + ",").find("," + option_name(type_k, type_v) + ",") != std::string::npos;
}

// whether a build of that back end can have a kernel for the pair: none has one for the types of ours
bool can_be_compiled(ggml_type type_k, ggml_type type_v) {
    return !kvtuner_is_cache_only(type_k) && !kvtuner_is_cache_only(type_v);
}

std::string describe(const layers_by_pair & found) {
    std::string text;
    for (const auto & [pair, layers] : found) {
        text += (text.empty() ? "" : "; ") + pair + " in layers " + kvtuner_ranges(layers);
    }
    return text;
}

}  // namespace

std::vector<ggml_backend_dev_t> kvtuner_simple_devices(ggml_backend_dev_t device) {
    if (ggml_backend_dev_backend_reg(device)) {
        return { device };
    }
    std::vector<ggml_backend_dev_t> devices;  // without a registry of its own
    for (size_t i = 0; i < ggml_backend_meta_dev_n_devs(device); ++i) {
        devices.push_back(ggml_backend_meta_dev_simple_dev(device, i));
    }
    return devices;
}

bool kvtuner_reads_beside(ggml_backend_dev_t device) {
    return device && (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU || attention_is_fast(device));
}

std::string kvtuner_kernels_problem(ggml_backend_dev_t device, const kvtuner_attention_layer & layer) {
    const auto problem_of = told_by<kvtuner_kernels_problem_t>(device, KVTUNER_KERNELS_PROBLEM);
    if (!problem_of) {
        return "";
    }
    attention_probe probe(layer, layer.type_k, layer.type_v);
    kvtuner_mark(probe.node);
    probe.add_beside(layer);
    const char * problem = problem_of(device, probe.node);
    return problem ? problem : "";
}

bool kvtuner_can_write(ggml_backend_dev_t device, ggml_type type, int64_t row_size) {
    ggml_context_ptr ctx(ggml_init({ 4 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), type, row_size, N_KV);
    ggml_tensor * row = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, row_size, 1);
    ggml_tensor * index = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, 1);
    return ggml_backend_dev_supports_op(device, ggml_set_rows(ctx.get(), cache, row, index));
}

std::string kvtuner_slow_layers(ggml_backend_dev_t device, const std::vector<kvtuner_attention_layer> & layers) {
    const std::string pairs = compiled_pairs(device);
    layers_by_pair unsupported;
    layers_by_pair converted;
    layers_by_pair always_converted;
    std::string wanted;
    for (const kvtuner_attention_layer & layer : layers) {
        const std::string pair = kvtuner_pair_name(layer.type_k, layer.type_v);
        if (!runs_attention(device, layer, GGML_TYPE_F16, GGML_TYPE_F16)) {
            continue;  // no matter of the plan
        }
        if (is_attended_fast(device, layer)) {
            continue;
        }
        if (!runs_attention(device, layer, layer.type_k, layer.type_v)) {
            unsupported[pair].push_back(layer.il);
        } else if (!pairs.empty() && !can_be_compiled(layer.type_k, layer.type_v)) {
            always_converted[pair].push_back(layer.il);
        } else if (!is_compiled(pairs, layer.type_k, layer.type_v)) {
            wanted += converted.count(pair) ? "" : ";" + option_name(layer.type_k, layer.type_v);
            converted[pair].push_back(layer.il);
        }
    }
    std::string text;
    if (!unsupported.empty()) {
        text = "has no attention kernel for " + describe(unsupported) +
               ", which the CPU attends instead: use other types there";
    }
    if (!always_converted.empty()) {
        text += (text.empty() ? "" : "; and ") +
                ("converts K and V to f16 on every call for " + describe(always_converted)) + ": use other types there";
    }
    if (!converted.empty()) {
        std::string compiled = pairs;
        for (char & c : compiled) {
            c = c == ',' ? ';' : c;
        }
        text += (text.empty() ? "" : "; and ") + ("converts K and V to f16 on every call for " + describe(converted)) +
                ": build with -D \"GGML_CUDA_FA_QUANTS=" + compiled + wanted + "\"";
    }
    return text.empty() ? "" : name_of(device) + " is slow with this plan: it " + text;
}

void kvtuner_warn_slow_layers(const llama_context & ctx) {
    const llama_model & model = ctx.get_model();
    const llama_hparams & hparams = model.hparams;
    if (hparams.is_mla()) {
        return;  // equal types there, as upstream runs them
    }
    std::map<ggml_backend_dev_t, std::vector<kvtuner_attention_layer>> by_device;
    for (const auto & [il, tensors] : kvtuner_layers_of(ctx)) {
        ggml_backend_dev_t device = ctx.get_cparams().offload_kqv ? model.dev_layer(il) : nullptr;
        if (device && tensors.v) {
            by_device[device].push_back({ il, hparams.n_embd_head_k(il), hparams.n_embd_head_v(il), hparams.n_head(il),
                                          hparams.n_head_kv(il), tensors.k->type, tensors.v->type });
        }
    }
    for (const auto & [device, layers] : by_device) {
        const std::string text = kvtuner_slow_layers(device, layers);
        if (!text.empty()) {
            LLAMA_LOG_WARN("kvtuner: %s\n", text.c_str());
        }
    }
}
