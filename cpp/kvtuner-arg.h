// A kv_config on the command line of a tool.
#pragma once

#include "kvtuner.h"

#include <stdexcept>
#include <string>

// The same text, checked as far as it can be without a model. Throws std::invalid_argument with one line.
inline std::string kvtuner_checked(const std::string & kv_config) {
    char err[1024];
    if (!kvtuner_check_kv_config(kv_config.c_str(), err, sizeof(err))) {
        throw std::invalid_argument(err);
    }
    return kv_config;
}
