// Plans for a model at hand: mixed by rule, or given as a list of pairs, and those that it must refuse.
#pragma once

#include "kvtuner-plan.h"

#include "llama.h"

#include <string>
#include <vector>

struct named_plan {
    std::string name;  // "f16/q5_1,q8_0/iq4_nl": the pairs of the first layers
    kvtuner_plan plan;
};

// A plan and a part of the reason that it must be refused for.
struct refused_plan {
    std::string name;
    kvtuner_plan plan;
    bool has_flash_attn;
    std::string reason;
};

// The pairs of "K/V,K/V,...", over and over for all layers; a type gives way to f16 where the model cannot have it.
named_plan plan_from_pairs(const llama_model & model, const std::string & pairs);

// Plans that hold between them every type on either side; some have centers and scales as well, where the model can.
std::vector<named_plan> mixed_plans(const llama_model & model);

// Plans that do not fit: a block that does not divide a head, a quantized V without FlashAttention, two types in one
// tensor, centers and scales where they are not exact. Empty where nothing does not fit.
std::vector<refused_plan> refused_plans(const llama_model & model);

std::string plan_json(const kvtuner_plan & plan);
