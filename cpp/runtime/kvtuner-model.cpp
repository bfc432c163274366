#include "kvtuner-model.h"

#include "kvtuner-check.h"
#include "kvtuner-choice.h"
#include "kvtuner-vectors.h"
#include "kvtuner.h"

#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

namespace {

bool is_type(ggml_type type) {
    return type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(type) > 0;
}

bool is_quantized(ggml_type type) {
    return is_type(type) && ggml_is_quantized(type);
}

bool plan_quantizes_v(const llama_model & model) {
    const kvtuner_plan_ptr plan = kvtuner_selected(model).plan;
    return plan && std::any_of(plan->type_v.begin(), plan->type_v.end(), is_quantized);
}

// JSON is a plan's text, anything else the path of one; before the brace may stand what may in a file
bool is_json(const std::string & kv_config) {
    const size_t begin = kv_config.compare(0, 3, "\xef\xbb\xbf") == 0 ? 3 : 0;
    const size_t at = kv_config.find_first_not_of(" \t\r\n", begin);
    return at != std::string::npos && kv_config[at] == '{';
}

// null for "auto" and "none"
kvtuner_plan_ptr plan_from_config(const std::string & kv_config) {
    if (kv_config == "auto" || kv_config == "none") {
        return nullptr;
    }
    return is_json(kv_config) ? kvtuner_plan_from_json(kv_config) : kvtuner_plan_from_file(kv_config);
}

// values of a key in each layer
std::vector<uint32_t> key_sizes(const llama_hparams & hparams) {
    std::vector<uint32_t> sizes;
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        sizes.push_back(hparams.n_embd_k_gqa(il));
    }
    return sizes;
}

void check_sizes(const kvtuner_plan & plan, const llama_hparams & hparams) {
    const std::vector<uint32_t> found = key_sizes(hparams);
    const std::vector<uint64_t> sizes(found.begin(), found.end());
    if (plan.type_k.size() != sizes.size()) {
        throw std::runtime_error("the plan has " + std::to_string(plan.type_k.size()) + " layers, the model " +
                                 std::to_string(sizes.size()) + ": use a plan that was tuned for this model");
    }
    kvtuner_check_vectors(plan.center_k, sizes, kvtuner_vector_kind::CENTER);
    kvtuner_check_vectors(plan.scale_k, sizes, kvtuner_vector_kind::SCALE);
}

// the plan, without what is not wanted of it
kvtuner_plan_ptr reduced(const kvtuner_plan_ptr & plan, bool use_centers, bool use_ends) {
    if (!plan || (use_centers && use_ends)) {
        return plan;
    }
    kvtuner_plan rest = *plan;
    if (!use_centers) {
        rest.center_k.clear();
        rest.center_span = 0;
    }
    if (!use_ends && rest.ends.n_positions() > 0) {
        rest.ends = {};
        rest.scale_k.clear();
    }
    return std::make_shared<const kvtuner_plan>(std::move(rest));
}

// a model that was loaded for its vocabulary alone has no layers, which no plan fits and none has to
bool has_layers(const llama_model & model) {
    return model.hparams.n_layer_all > 0;
}

// what the kv_config stands for in this model; throws where it is of no use
kvtuner_selection choose(const llama_model & model, const std::string & kv_config, bool use_centers, bool use_ends) {
    if (kv_config == "auto") {
        const kvtuner_selection & found = model.kvtuner.metadata;
        return { reduced(found.plan, use_centers, use_ends), found.error };
    }
    const kvtuner_plan_ptr plan = plan_from_config(kv_config);
    if (!plan || !has_layers(model)) {
        return {};
    }
    check_sizes(*plan, model.hparams);
    return { reduced(plan, use_centers, use_ends), "" };
}

kvtuner_selection plan_of_metadata(const llama_model & model, const gguf_context * metadata) {
    if (!has_layers(model)) {
        return {};
    }
    try {
        return { kvtuner_plan_from_gguf(metadata, llm_arch_name(model.arch), key_sizes(model.hparams)), "" };
    } catch (const std::runtime_error & err) {
        return { nullptr, err.what() };
    }
}

bool uses_plan(ggml_type type_k, ggml_type type_v) {
    return type_k == GGML_TYPE_F16 && type_v == GGML_TYPE_F16;
}

std::string type_problem(const char * name, ggml_type type) {
    return is_type(type)
                   ? ""
                   : std::string(name) + " is " + std::to_string(type) + ", which is no type: use one of GGML_TYPE_*";
}

// why a context with these parameters cannot have its cache; empty where it can
std::string context_problem(const llama_model & model, const llama_context_params & params) {
    for (const std::string & problem :
         { type_problem("type_k", params.type_k), type_problem("type_v", params.type_v) }) {
        if (!problem.empty()) {
            return problem;
        }
    }
    const bool is_planned = uses_plan(params.type_k, params.type_v);
    const std::string found = is_planned ? kvtuner_plan_problem(model, params) : "";
    return found.empty() ? kvtuner_device_problem(model, params) : found;
}

thread_local const kvtuner_snapshot * innermost = nullptr;

}  // namespace

void kvtuner_model_init(llama_model & model, const gguf_context * metadata,
                        const std::unordered_map<std::string, llama_model_kv_override> & overrides) {
    model.kvtuner.metadata = plan_of_metadata(model, metadata);
    const kvtuner_choice choice = kvtuner_choice_of(overrides);
    kvtuner_check_conflict(choice.kv_config, choice.types_given);
    const std::string kv_config = choice.types_given ? "none" : choice.kv_config;
    model.kvtuner.select(choose(model, kv_config, choice.use_centers, choice.use_ends));
}

kvtuner_snapshot::kvtuner_snapshot(const llama_model & model)
    : model(model), selection(model.kvtuner.selected()), outer(innermost) {
    innermost = this;
}

kvtuner_snapshot::~kvtuner_snapshot() {
    innermost = outer;
}

kvtuner_selection kvtuner_selected(const llama_model & model) {
    const bool is_taken = innermost && &innermost->model == &model;
    return is_taken ? innermost->selection : model.kvtuner.selected();
}

bool kvtuner_prepare_context(const llama_model & model, llama_context_params & params) {
    const std::string problem = context_problem(model, params);
    if (!problem.empty()) {
        LLAMA_LOG_ERROR("kvtuner: %s\n", problem.c_str());
        return false;
    }
    if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_AUTO && kvtuner_quantized_v(model, params) &&
        !is_quantized(params.type_v)) {
        LLAMA_LOG_INFO("kvtuner: enabling flash_attn since the plan quantizes V\n");
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    return true;
}

void kvtuner_set_cparams(const llama_cparams & cparams) {
    if (innermost) {
        innermost->cparams = &cparams;
    }
}

const llama_cparams & kvtuner_cparams() {
    GGML_ASSERT(innermost && innermost->cparams && "caches of a plan are made with their context");
    return *innermost->cparams;
}

kvtuner_plan_ptr kvtuner_plan_for(const llama_model & model, const llama_hparams & hparams, ggml_type type_k,
                                  ggml_type type_v) {
    return &hparams == &model.hparams && uses_plan(type_k, type_v) ? kvtuner_selected(model).plan : nullptr;
}

ggml_type kvtuner_layer_type_k(const llama_model & model, const llama_hparams & hparams, uint32_t il, ggml_type type_k,
                               ggml_type type_v) {
    const kvtuner_plan_ptr plan = kvtuner_plan_for(model, hparams, type_k, type_v);
    return plan ? plan->type_k.at(il) : type_k;
}

ggml_type kvtuner_layer_type_v(const llama_model & model, const llama_hparams & hparams, uint32_t il, ggml_type type_k,
                               ggml_type type_v) {
    const kvtuner_plan_ptr plan = kvtuner_plan_for(model, hparams, type_k, type_v);
    return plan ? plan->type_v.at(il) : type_v;
}

bool kvtuner_quantized_v(const llama_model & model, const llama_context_params & params) {
    return is_quantized(params.type_v) || (uses_plan(params.type_k, params.type_v) && plan_quantizes_v(model));
}

static bool report(const std::string & problem, char * err, size_t err_size) {
    if (!problem.empty() && err && err_size > 0) {
        snprintf(err, err_size, "%s", problem.c_str());
    }
    return problem.empty();
}

bool kvtuner_check_kv_config(const char * kv_config, bool types_given, char * err, size_t err_size) {
    try {
        const std::string text = kvtuner_config_text(kv_config);
        kvtuner_check_conflict(text, types_given);
        plan_from_config(text);
        return true;
    } catch (const std::exception & e) {
        return report(e.what(), err, err_size);
    }
}

bool kvtuner_model_set_kv_config(llama_model * model, const char * kv_config, bool use_centers, bool use_ends,
                                 char * err, size_t err_size) {
    try {
        const kvtuner_selection chosen = choose(*model, kvtuner_config_text(kv_config), use_centers, use_ends);
        if (chosen.error.empty()) {
            model->kvtuner.select(chosen);
        }
        return report(chosen.error, err, err_size);
    } catch (const std::exception & e) {
        return report(e.what(), err, err_size);
    }
}

bool kvtuner_check_context(const llama_model * model, const llama_context_params * params, char * err,
                           size_t err_size) {
    const kvtuner_snapshot snapshot(*model);
    return report(context_problem(*model, *params), err, err_size);
}

bool kvtuner_needs_flash_attn(const llama_model * model, const llama_context_params * params) {
    return kvtuner_quantized_v(*model, *params);
}

bool kvtuner_file_has_plan(const char * path_model) {
    gguf_context_ptr metadata(gguf_init_from_file(path_model, { /*.no_alloc =*/true, /*.ctx =*/nullptr }));
    return metadata && kvtuner_gguf_has_plan(metadata.get());
}
