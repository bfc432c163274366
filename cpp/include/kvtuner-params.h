// What the user of a tool chose for a model's cache.
#pragma once

#include <string>

struct kvtuner_params {
    std::string kv_config = "auto";  // auto, none or a file
    bool types_given = false;        // a uniform type was asked for
    bool use_centers = true;
    bool use_ends = true;
};
