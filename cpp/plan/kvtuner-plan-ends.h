// The exact ends of a plan, in its two forms: an object in JSON, three keys in GGUF metadata.
#pragma once

#include "kvtuner-plan.h"
#include "kvtuner-plan-shape.h"

#include <nlohmann/json.hpp>

#include <string>

// The ends in the entry 'ends' of a plan; none for null. Throws std::runtime_error with one line.
kvtuner_ends kvtuner_ends_of(const nlohmann::json & value);

// The ends in `exact_first`, `exact_last` and `exact_type` behind the prefix; none without any of them. Throws
// likewise.
kvtuner_ends kvtuner_ends_from_gguf(const gguf_context * metadata, const std::string & prefix);

// Throws std::runtime_error where heads of layer il cannot be stored in the type of the plan's ends.
void kvtuner_check_ends(const kvtuner_plan & plan, const kvtuner_plan_shape & shape, size_t il);
