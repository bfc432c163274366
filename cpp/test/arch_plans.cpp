#include "arch_plans.h"

#include "kvtuner-check.h"

#include "llama-arch.h"
#include "llama-model.h"

#include <base64.hpp>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

// fine and coarse by turns, so that every layer has a side whose rounding shows
static constexpr ggml_type MIXED_TYPES[] = { GGML_TYPE_F16,  GGML_TYPE_Q4_0, GGML_TYPE_Q8_0,
                                             GGML_TYPE_Q5_1, GGML_TYPE_BF16, GGML_TYPE_IQ4_NL };
static constexpr size_t N_MIXED_TYPES = sizeof(MIXED_TYPES) / sizeof(MIXED_TYPES[0]);
static constexpr size_t N_MIXED_PLANS = 3;
static constexpr std::pair<ggml_type, ggml_type> LOW_PAIRS[] = { { GGML_TYPE_Q3_NL, GGML_TYPE_Q2_NL },
                                                                 { GGML_TYPE_Q2_NL, GGML_TYPE_Q8_0 },
                                                                 { GGML_TYPE_Q4_0, GGML_TYPE_Q3_NL } };
// centers show in the rounding of keys alone
static constexpr std::pair<ggml_type, ggml_type> COARSE_KEYS[] = { { GGML_TYPE_Q2_NL, GGML_TYPE_F16 },
                                                                   { GGML_TYPE_Q3_NL, GGML_TYPE_Q8_0 } };
// and those of blocks of positions in whether they come back: keys in f16 are rounded alike with any
static constexpr std::pair<ggml_type, ggml_type> COARSE_VALUES[] = { { GGML_TYPE_F16, GGML_TYPE_Q4_0 },
                                                                     { GGML_TYPE_F16, GGML_TYPE_Q3_NL } };
static constexpr uint32_t SPAN = 16;
static constexpr size_t CENTERED_PLAN = 2;
static constexpr uint32_t ALL_POSITIONS = 1024;  // as ends, so that nothing is read from the quantized cache
static constexpr size_t K_TO_V = 3;              // so that K and V of a layer differ
static constexpr size_t N_NAMED_LAYERS = 4;

static bool has_cache(const llama_model & model, uint32_t il) {
    return model.hparams.has_kv(il) && !model.hparams.is_recr(il);
}

static bool fits(ggml_type type, uint32_t head_size) {
    return head_size % ggml_blck_size(type) == 0;
}

static bool has_flash_attn(const llama_model & model) {
    return model.arch != LLM_ARCH_GROK && model.arch != LLM_ARCH_T5;
}

static ggml_type fitting_k(const llama_model & model, uint32_t il, ggml_type type) {
    return !has_cache(model, il) || fits(type, model.hparams.n_embd_head_k(il)) ? type : GGML_TYPE_F16;
}

static ggml_type fitting_v(const llama_model & model, uint32_t il, ggml_type type) {
    const bool is_possible =
            fits(type, model.hparams.n_embd_head_v(il)) && (has_flash_attn(model) || !ggml_is_quantized(type));
    return !has_cache(model, il) || is_possible ? type : GGML_TYPE_F16;
}

static void add_layer(kvtuner_plan & plan, const llama_model & model, ggml_type type_k, ggml_type type_v) {
    const uint32_t il = (uint32_t)plan.type_k.size();
    plan.type_k.push_back(fitting_k(model, il, type_k));
    plan.type_v.push_back(model.hparams.is_mla() ? plan.type_k.back() : fitting_v(model, il, type_v));
}

// any vector is exact; these numbers are float16 and not so large that attention in f16 would lose digits to them
static std::vector<float> some_center(uint32_t n_values, uint32_t seed) {
    std::vector<float> values(n_values);
    for (float & value : values) {
        seed = seed * 1664525u + 1013904223u;
        value = ((int)(seed >> 24) % 33 - 16) * 0.03125f;
    }
    return values;
}

static void add_centers(kvtuner_plan & plan, const llama_model & model) {
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        const bool can_center = has_cache(model, il) && kvtuner_centering_obstacle(model, il).empty();
        plan.center_k.push_back(some_center(can_center ? model.hparams.n_embd_k_gqa(il) : 0, 2 * il));
    }
}

// which pair of channels RoPE turns a channel of a head in
static uint32_t pair_of(const llama_hparams & hparams, uint32_t il, uint32_t channel) {
    const uint32_t n_rot = hparams.n_rot(il);
    if (channel >= n_rot) {
        return channel;
    }
    return hparams.rope_type == LLAMA_ROPE_TYPE_NORM ? channel / 2 : channel % (n_rot / 2);
}

// powers of two, which do not round
static std::vector<float> some_scale(const llama_hparams & hparams, uint32_t il) {
    std::vector<float> values(hparams.n_embd_k_gqa(il));
    const uint32_t size = hparams.n_embd_head_k(il);
    for (uint32_t i = 0; i < values.size(); ++i) {
        values[i] = 0.25f * (float)(1 << (7 * (i / size + pair_of(hparams, il, i % size)) % 5));
    }
    return values;
}

static void add_scales(kvtuner_plan & plan, const llama_model & model) {
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        const bool can_scale = has_cache(model, il) && kvtuner_scaling_obstacle(model).empty();
        plan.scale_k.push_back(can_scale ? some_scale(model.hparams, il) : std::vector<float>());
    }
}

static bool is_there(const std::vector<float> & vector) {
    return !vector.empty();
}

static bool has_centers(const kvtuner_plan & plan) {
    return std::any_of(plan.center_k.begin(), plan.center_k.end(), is_there);
}

static bool has_scales(const kvtuner_plan & plan) {
    return std::any_of(plan.scale_k.begin(), plan.scale_k.end(), is_there);
}

static std::string name_of(const kvtuner_plan & plan) {
    std::string name;
    for (size_t il = 0; il < std::min(plan.type_k.size(), N_NAMED_LAYERS); ++il) {
        name += (il ? "," : "") + std::string(ggml_type_name(plan.type_k[il])) + "/" + ggml_type_name(plan.type_v[il]);
    }
    return name + (has_centers(plan) ? " centered" : "") + (has_scales(plan) ? " scaled" : "");
}

static ggml_type type_of(const std::string & name) {
    const ggml_type type = kvtuner_type_from_name(name);
    if (type == GGML_TYPE_COUNT) {
        throw std::runtime_error(kvtuner_unknown_type("'" + name + "'", "a mixed plan"));
    }
    return type;
}

using type_pairs = std::vector<std::pair<ggml_type, ggml_type>>;

static named_plan plan_in_turns(const llama_model & model, const type_pairs & types) {
    named_plan named;
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        add_layer(named.plan, model, types[il % types.size()].first, types[il % types.size()].second);
    }
    named.name = name_of(named.plan);
    return named;
}

named_plan plan_from_pairs(const llama_model & model, const std::string & pairs) {
    type_pairs types;
    std::istringstream stream(pairs);
    for (std::string pair; std::getline(stream, pair, ',');) {
        const size_t slash = pair.find('/');
        types.emplace_back(type_of(pair.substr(0, slash)), type_of(pair.substr(slash + 1)));
    }
    return plan_in_turns(model, types);
}

std::vector<named_plan> mixed_plans(const llama_model & model) {
    std::vector<named_plan> plans(N_MIXED_PLANS);
    for (size_t i = 0; i < N_MIXED_PLANS; ++i) {
        for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
            const size_t k = 2 * i + (i % 2 ? il ^ 1 : il);  // so that the coarse side of a layer changes
            add_layer(plans[i].plan, model, MIXED_TYPES[k % N_MIXED_TYPES], MIXED_TYPES[(k + K_TO_V) % N_MIXED_TYPES]);
        }
        if (i == CENTERED_PLAN) {
            add_centers(plans[i].plan, model);
        }
        plans[i].name = name_of(plans[i].plan);
    }
    plans.push_back(plan_in_turns(model, { std::begin(LOW_PAIRS), std::end(LOW_PAIRS) }));
    plans.push_back(plan_in_turns(model, { std::begin(LOW_PAIRS), std::end(LOW_PAIRS) }));
    plans.back().plan.ends = { 1, ALL_POSITIONS, GGML_TYPE_F16 };
    plans.back().name += " exact";
    plans.push_back(plan_in_turns(model, { std::begin(COARSE_KEYS), std::end(COARSE_KEYS) }));
    add_centers(plans.back().plan, model);
    add_scales(plans.back().plan, model);
    plans.back().name = name_of(plans.back().plan);
    plans.push_back(plan_in_turns(model, { std::begin(COARSE_VALUES), std::end(COARSE_VALUES) }));
    add_centers(plans.back().plan, model);
    plans.back().plan.center_span = SPAN;
    plans.back().name = name_of(plans.back().plan) + " by blocks";
    plans.push_back(plans.back());
    plans.back().plan.ends = { 1, ALL_POSITIONS, GGML_TYPE_F16 };
    add_scales(plans.back().plan, model);
    plans.back().name = name_of(plans.back().plan) + " by blocks exact";
    return plans;
}

static kvtuner_plan f16_plan(const llama_model & model) {
    const std::vector<ggml_type> types(model.hparams.n_layer_all, GGML_TYPE_F16);
    kvtuner_plan plan;
    plan.type_k = plan.type_v = types;
    return plan;
}

static void add_block_refusals(std::vector<refused_plan> & refused, const llama_model & model, uint32_t il) {
    const auto add = [&](const char * side, std::vector<ggml_type> kvtuner_plan::*types, uint32_t head_size) {
        if (!fits(GGML_TYPE_Q8_0, head_size)) {
            refused.push_back({ std::string(side) + " block", f16_plan(model), true,
                                "layer " + std::to_string(il) + ": " + side + " type q8_0 has blocks of 32 values, " +
                                        "which do not divide the head size " + std::to_string(head_size) });
            (refused.back().plan.*types)[il] = GGML_TYPE_Q8_0;
        }
    };
    add("K", &kvtuner_plan::type_k, model.hparams.n_embd_head_k(il));
    add("V", &kvtuner_plan::type_v, model.hparams.n_embd_head_v(il));
}

std::vector<refused_plan> refused_plans(const llama_model & model) {
    std::vector<refused_plan> refused;
    uint32_t il = 0;
    while (il < model.hparams.n_layer_all && !has_cache(model, il)) {
        ++il;
    }
    if (il == model.hparams.n_layer_all) {
        return refused;
    }
    const std::string layer = "layer " + std::to_string(il);
    const std::string obstacle = kvtuner_centering_obstacle(model, il);
    if (!obstacle.empty()) {
        refused.push_back({ "centers", f16_plan(model), true,
                            layer + ": keys cannot be centered, since this model " + obstacle });
        refused.back().plan.center_k.resize(model.hparams.n_layer_all);
        refused.back().plan.center_k[il] = some_center(model.hparams.n_embd_k_gqa(il), 1);
    }
    const std::string apart = kvtuner_scaling_obstacle(model);
    if (!apart.empty()) {
        refused.push_back(
                { "scales", f16_plan(model), true, layer + ": keys cannot be scaled, since this model " + apart });
        refused.back().plan.scale_k.resize(model.hparams.n_layer_all);
        refused.back().plan.scale_k[il] = some_scale(model.hparams, il);
    }
    if (model.hparams.is_mla()) {
        refused.push_back({ "two types", f16_plan(model), true, layer + ": V type q8_0 differs from K type f16" });
        refused.back().plan.type_v[il] = GGML_TYPE_Q8_0;
        return refused;
    }
    add_block_refusals(refused, model, il);
    if (fits(GGML_TYPE_Q8_0, model.hparams.n_embd_head_v(il))) {
        refused.push_back({ "no FlashAttention", f16_plan(model), has_flash_attn(model) ? false : true,
                            layer + ": V type q8_0 needs FlashAttention" });
        refused.back().plan.type_v[il] = GGML_TYPE_Q8_0;
    }
    return refused;
}

static std::string vector_json(const char * key, const std::vector<std::vector<float>> & vectors, size_t il) {
    if (il >= vectors.size() || vectors[il].empty()) {
        return "";
    }
    std::vector<ggml_fp16_t> halves(vectors[il].size());
    ggml_fp32_to_fp16_row(vectors[il].data(), halves.data(), (int64_t)halves.size());
    const char * bytes = (const char *)halves.data();
    return ",\"" + std::string(key) + "\":\"" + base64::encode(bytes, halves.size() * sizeof(ggml_fp16_t)) + "\"";
}

std::string plan_json(const kvtuner_plan & plan) {
    std::string text;
    for (size_t il = 0; il < plan.type_k.size(); ++il) {
        text += (il ? "," : "") + std::string("{\"layer\":") + std::to_string(il) + ",\"k\":\"" +
                ggml_type_name(plan.type_k[il]) + "\",\"v\":\"" + ggml_type_name(plan.type_v[il]) + "\"" +
                vector_json("center_k", plan.center_k, il) + vector_json("scale_k", plan.scale_k, il) + "}";
    }
    const kvtuner_ends & ends = plan.ends;
    const std::string exact = ends.n_positions() == 0 ? ""
                                                      : ",\"ends\":{\"first\":" + std::to_string(ends.first) +
                                                                ",\"last\":" + std::to_string(ends.last) +
                                                                ",\"type\":\"" + ggml_type_name(ends.type) + "\"}";
    const std::string span =
            has_centers(plan) && plan.center_span ? ",\"center_span\":" + std::to_string(plan.center_span) : "";
    return "{\"schema\":\"kvtuner.plan/1\"" + exact + span + ",\"layers\":[" + text + "]}";
}
