// What a user chose for one load of a model, carried by the overrides in the load's parameters.
#pragma once

#include "llama.h"

#include <string>
#include <unordered_map>

struct kvtuner_choice {
    std::string kv_config = "auto";
    bool types_given = false;
    bool use_centers = true;
    bool use_ends = true;
};

// The kv_config that a text stands for: none at all and an empty one are "auto".
std::string kvtuner_config_text(const char * kv_config);

// Throws std::runtime_error where a plan and uniform types are both asked for.
void kvtuner_check_conflict(const std::string & kv_config, bool types_given);

// The choice among a load's overrides, by key; the default where they hold none. See `kvtuner_kv_override`.
kvtuner_choice kvtuner_choice_of(const std::unordered_map<std::string, llama_model_kv_override> & overrides);
