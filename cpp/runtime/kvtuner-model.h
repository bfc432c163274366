// Where the plan meets llama.cpp: the calls that our patches make.
#pragma once

#include "kvtuner-plan.h"

#include "llama.h"

#include <string>
#include <unordered_map>

struct llama_cparams;
struct llama_hparams;
struct llama_model;

// Once the hyperparameters are read: take the plan from the metadata and apply the choice among the load's overrides.
// Throws std::runtime_error where that kv_config is of no use. Unusable metadata is kept as an error for later, so
// that `--kv-config none` can still load the model.
void kvtuner_model_init(llama_model & model, const gguf_context * metadata,
                        const std::unordered_map<std::string, llama_model_kv_override> & overrides);

// What is selected for a model at one moment. While it lives, all that this thread asks about the model's plan is
// answered by it, whatever other threads select: one for each context that is created.
class kvtuner_snapshot {
public:
    explicit kvtuner_snapshot(const llama_model & model);
    ~kvtuner_snapshot();
    kvtuner_snapshot(const kvtuner_snapshot &) = delete;
    kvtuner_snapshot & operator=(const kvtuner_snapshot &) = delete;

    const llama_model & model;
    const kvtuner_selection selection;
    mutable const llama_cparams * cparams = nullptr;  // once the context has them

private:
    const kvtuner_snapshot * const outer;
};

// What the context that this thread creates is set to, before it makes its caches.
void kvtuner_set_cparams(const llama_cparams & cparams);
const llama_cparams & kvtuner_cparams();

// What is selected for a model: by the thread's snapshot, where it has one, else now.
kvtuner_selection kvtuner_selected(const llama_model & model);

// Before a context is created: check the selected plan, layer by layer, against the model and the parameters, and turn
// FlashAttention on where the plan needs it. False with an error in the log where it does not fit.
bool kvtuner_prepare_context(const llama_model & model, llama_context_params & params);

// After a context is created: log the distinct pairs with their layers, the true bits per value and the size.
void kvtuner_log_context(const llama_context & ctx);

// The plan that a cache made for these hyperparameters with these types follows, or null. Caches of compressed or
// index keys have hyperparameters of their own and follow none.
kvtuner_plan_ptr kvtuner_plan_for(const llama_model & model, const llama_hparams & hparams, ggml_type type_k,
                                  ggml_type type_v);

// The types of one layer: the plan's where it applies, else the ones given.
ggml_type kvtuner_layer_type_k(const llama_model & model, const llama_hparams & hparams, uint32_t il, ggml_type type_k,
                               ggml_type type_v);
ggml_type kvtuner_layer_type_v(const llama_model & model, const llama_hparams & hparams, uint32_t il, ggml_type type_k,
                               ggml_type type_v);

// True if a context with these parameters will have a quantized V in some layer.
bool kvtuner_quantized_v(const llama_model & model, const llama_context_params & params);
