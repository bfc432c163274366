// The checks, their order and their words are those of kvtuner_gguf/plan/ends.py and, for GGUF metadata, of
// kvtuner_gguf/gguffile/stored_plan.py.

#include "kvtuner-plan-ends.h"

#include "kvtuner-strict-json.h"

#include <algorithm>
#include <array>
#include <stdexcept>

using json = nlohmann::json;

static constexpr uint32_t MAX_END = 1u << 20;
static constexpr std::array<ggml_type, 2> END_TYPES = { GGML_TYPE_F16, GGML_TYPE_Q8_0 };

namespace {

[[noreturn]] void reject_ends(const std::string & message) {
    throw std::runtime_error(message);
}

uint32_t end_positions(const json & value, const char * end) {
    if (!kvtuner_is_count(value) || value > MAX_END) {
        reject_ends("the ends have " + kvtuner_shown(value) + " " + end + " positions: give a whole number of 0 to " +
                    std::to_string(MAX_END));
    }
    return value.get<uint32_t>();
}

ggml_type end_type(const json & name) {
    const auto is_named = [&](ggml_type type) { return name == ggml_type_name(type); };
    const auto found = std::find_if(END_TYPES.begin(), END_TYPES.end(), is_named);
    if (found == END_TYPES.end()) {
        reject_ends("unknown type " + kvtuner_shown(name) + " for the ends: use f16 or q8_0");
    }
    return *found;
}

kvtuner_ends checked_ends(const json & first, const json & last, const json & type) {
    kvtuner_ends ends;
    ends.first = end_positions(first, "first");
    ends.last = end_positions(last, "last");
    if (ends.n_positions() == 0) {
        reject_ends("the ends have neither first nor last positions: leave them out");
    }
    ends.type = end_type(type);
    return ends;
}

int64_t end_field(const gguf_context * metadata, const std::string & key, gguf_type kind, const char * what) {
    const int64_t id = gguf_find_key(metadata, key.c_str());
    if (gguf_get_kv_type(metadata, id) != kind) {
        reject_ends(key + " is no " + what + ": annotate the model again");
    }
    return id;
}

// whether layer il keeps exact rows, where the plan has ends: as `has_ends` in Python
bool has_ends(const kvtuner_plan & plan, const kvtuner_plan_shape & shape, size_t il) {
    return plan.ends.n_positions() > 0 && shape.keeps[il] && shape.window[il] == 0 && !shape.latent &&
           (ggml_is_quantized(plan.type_k[il]) || ggml_is_quantized(plan.type_v[il]));
}

void check_end_blocks(size_t il, const char * side, ggml_type type, uint64_t head_dim) {
    const uint64_t block = (uint64_t)ggml_blck_size(type);
    if (head_dim % block != 0) {
        reject_ends("layer " + std::to_string(il) + ": " + side + " ends of type " + ggml_type_name(type) +
                    " have blocks of " + std::to_string(block) + " values, which do not divide the head size " +
                    std::to_string(head_dim) + ": use f16 for the ends");
    }
}

}  // namespace

kvtuner_ends kvtuner_ends_of(const json & value) {
    if (value.is_null()) {
        return {};
    }
    if (!value.is_object()) {
        reject_ends("'ends' must be an object of {first, last, type}: see configs/plan.schema.json");
    }
    return checked_ends(kvtuner_member(value, "first"), kvtuner_member(value, "last"), kvtuner_member(value, "type"));
}

kvtuner_ends kvtuner_ends_from_gguf(const gguf_context * metadata, const std::string & prefix) {
    const std::array<std::string, 3> keys = { prefix + "exact_first", prefix + "exact_last", prefix + "exact_type" };
    const auto is_there = [&](const std::string & key) { return gguf_find_key(metadata, key.c_str()) >= 0; };
    if (std::none_of(keys.begin(), keys.end(), is_there)) {
        return {};
    }
    const auto missing = std::find_if_not(keys.begin(), keys.end(), is_there);
    if (missing != keys.end()) {
        reject_ends(*missing + " is missing while others of the ends are there: annotate the model again");
    }
    const int64_t first = end_field(metadata, keys[0], GGUF_TYPE_UINT32, "uint32");
    const int64_t last = end_field(metadata, keys[1], GGUF_TYPE_UINT32, "uint32");
    const int64_t type = end_field(metadata, keys[2], GGUF_TYPE_STRING, "text");
    return checked_ends(gguf_get_val_u32(metadata, first), gguf_get_val_u32(metadata, last),
                        gguf_get_val_str(metadata, type));
}

void kvtuner_check_ends(const kvtuner_plan & plan, const kvtuner_plan_shape & shape, size_t il) {
    if (has_ends(plan, shape, il)) {
        check_end_blocks(il, "K", plan.ends.type, shape.head_dim_k[il]);
        check_end_blocks(il, "V", plan.ends.type, shape.head_dim_v[il]);
    }
}
