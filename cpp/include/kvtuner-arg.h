// A kv_config on the command line of a tool.
#pragma once

#include "kvtuner-params.h"
#include "kvtuner.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

// The same text, checked as far as it can be without a model. Throws std::invalid_argument with one line.
inline std::string kvtuner_checked(const std::string & kv_config, bool types_given = false) {
    char err[1024];
    if (!kvtuner_check_kv_config(kv_config.c_str(), types_given, err, sizeof(err))) {
        throw std::invalid_argument(err);
    }
    return kv_config;
}

// `overrides` with the choice in it, for the parameters of one load. They must outlive the load; a choice that they
// hold already is replaced in its place.
inline const llama_model_kv_override * kvtuner_overrides(std::vector<llama_model_kv_override> & overrides,
                                                         const kvtuner_params & params) {
    const llama_model_kv_override chosen =
            kvtuner_kv_override(params.kv_config.c_str(), params.types_given, params.use_centers, params.use_ends);
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
