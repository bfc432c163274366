// A kv_config on the command line of a tool.
#pragma once

#include "kvtuner-cache-only.h"
#include "kvtuner-formats.h"
#include "kvtuner.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

// the type of ours that is called so, or GGML_TYPE_COUNT
inline ggml_type kvtuner_own_type(const std::string & name) {
    for (ggml_type type : KVTUNER_CACHE_TYPES) {
        if (kvtuner_is_cache_only(type) && name == ggml_type_name(type)) {
            return type;
        }
    }
    return GGML_TYPE_COUNT;
}

// The same text, checked as far as it can be without a model. Throws std::invalid_argument with one line.
inline std::string kvtuner_checked(const std::string & kv_config, bool types_given = false) {
    char err[1024];
    if (!kvtuner_check_kv_config(kv_config.c_str(), types_given, err, sizeof(err))) {
        throw std::invalid_argument(err);
    }
    return kv_config;
}

// The kv_configs that a tool is to compare, "none" alone with uniform types. Ends the tool where one is of no use.
inline std::vector<std::string> kvtuner_compared(const std::vector<std::string> & kv_configs, bool types_given) {
    try {
        for (const std::string & kv_config : kv_configs) {
            kvtuner_checked(kv_config, types_given);
        }
    } catch (const std::invalid_argument & err) {
        fprintf(stderr, "error: %s\n", err.what());
        exit(1);
    }
    return types_given ? std::vector<std::string>{ "none" } : kv_configs;
}

// `overrides` with the choice in it, for the parameters of one load. They must outlive the load; a choice that they
// hold already is replaced in its place.
inline const llama_model_kv_override * kvtuner_overrides(std::vector<llama_model_kv_override> & overrides,
                                                         const std::string & kv_config, bool types_given,
                                                         bool use_centers) {
    const llama_model_kv_override chosen = kvtuner_kv_override(kv_config.c_str(), types_given, use_centers);
    const auto is_choice = [&](const llama_model_kv_override & other) { return strcmp(other.key, chosen.key) == 0; };
    const auto found = std::find_if(overrides.begin(), overrides.end(), is_choice);
    if (found != overrides.end()) {
        *found = chosen;
        return overrides.data();
    }
    if (overrides.empty()) {
        overrides.push_back({});  // the end
    }
    overrides.insert(overrides.begin(), chosen);
    return overrides.data();
}
