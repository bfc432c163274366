// What keeps a context from having the cache of a plan: checks by layer, before anything is allocated.
#pragma once

#include "llama.h"

#include <cstdint>
#include <string>

struct kvtuner_plan;
struct llama_hparams;
struct llama_model;

// Why a context with these parameters cannot have the cache of the selected plan; empty where it can.
std::string kvtuner_plan_problem(const llama_model & model, const llama_context_params & params);

// Why the devices of the layers cannot keep the types that these parameters give, plan or not; empty where they can.
std::string kvtuner_device_problem(const llama_model & model, const llama_context_params & params);

// Whether the center of the keys of layer il is another for each block of positions, as RoPE turns it.
bool kvtuner_has_turned_center(const kvtuner_plan & plan, const llama_hparams & hparams, uint32_t il);

// Whether the attention of this model can read exact ends: sparse attention, which picks tokens of the cache, does not.
bool kvtuner_can_read_exact(const llama_model & model);

// Why keys of layer il cannot be centered in this model, "caps the attention logits"; empty where they can.
std::string kvtuner_centering_obstacle(const llama_model & model, uint32_t il);

// Why keys cannot be scaled in this model, "keeps K and V in one tensor"; empty where they can.
std::string kvtuner_scaling_obstacle(const llama_model & model);
