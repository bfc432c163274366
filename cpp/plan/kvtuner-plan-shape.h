// The model that a plan in JSON says it is for.
#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

static constexpr size_t KVTUNER_MAX_PLAN_LAYERS = 4096;

// One entry per layer.
struct kvtuner_plan_shape {
    std::vector<uint64_t> n_head_kv;
    std::vector<uint64_t> head_dim_k;
    std::vector<uint64_t> head_dim_v;
    std::vector<uint64_t> window;  // tokens that a sliding window sees, 0 where the layer sees all
    std::vector<bool> keeps;       // whether the layer has a cache of its own
    bool latent = false;           // K and V are one tensor
};

// Read the entry 'model'; throws std::runtime_error with one line that names the value and the remedy.
kvtuner_plan_shape kvtuner_plan_shape_of(const nlohmann::json & model);
