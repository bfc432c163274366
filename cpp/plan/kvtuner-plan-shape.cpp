// The checks, their order and their words are those of kvtuner_gguf/plan/shapefields.py.

#include "kvtuner-plan-shape.h"

#include "kvtuner-strict-json.h"

#include <algorithm>
#include <stdexcept>
#include <string>

using json = nlohmann::json;

namespace {

[[noreturn]] void reject(const char * key, const std::string & message) {
    throw std::runtime_error("'model." + std::string(key) + "' " + message + ": tune the model again");
}

uint64_t count_of(const json & model, const char * key) {
    const json & value = kvtuner_member(model, key);
    if (!kvtuner_is_count(value)) {
        reject(key, "is " + kvtuner_shown(value) + ", not a count");
    }
    return value.get<uint64_t>();
}

std::vector<uint64_t> counts_of(const json & values, const char * key, size_t n_layer) {
    if (!values.is_array() || values.size() != n_layer ||
        !std::all_of(values.begin(), values.end(), kvtuner_is_count)) {
        reject(key, "must be one count per layer (" + std::to_string(n_layer) + ")");
    }
    return values.get<std::vector<uint64_t>>();
}

// one number for all layers, or one for each
std::vector<uint64_t> per_layer(const json & model, const char * key, size_t n_layer) {
    const json & value = kvtuner_member(model, key);
    return value.is_array() ? counts_of(value, key, n_layer) : std::vector<uint64_t>(n_layer, count_of(model, key));
}

void check_text(const json & model, const char * key) {
    const json & value = kvtuner_member(model, key);
    if (!value.is_null() && !value.is_string()) {
        reject(key, "is " + kvtuner_shown(value) + ", no text");
    }
}

bool has(const json & model, const char * key) {
    return !kvtuner_member(model, key).is_null();
}

// the layers whose cache is their own; the list names the layer whose cache each reads
std::vector<bool> own_caches(const json & model, size_t n_layer) {
    const json & caches = kvtuner_member(model, "cache");
    if (caches.is_null()) {
        return std::vector<bool>(n_layer, true);
    }
    const auto is_layer = [&](const json & value) {
        return value.is_null() || (kvtuner_is_count(value) && value < n_layer);
    };
    if (!caches.is_array() || caches.size() != n_layer || !std::all_of(caches.begin(), caches.end(), is_layer)) {
        reject("cache", "must be one layer or null per layer (" + std::to_string(n_layer) + ")");
    }
    std::vector<bool> own(n_layer);
    for (size_t il = 0; il < n_layer; ++il) {
        own[il] = caches[il] == il;
    }
    return own;
}

bool flag_of(const json & model, const char * key) {
    const json & flag = kvtuner_member(model, key);
    if (!flag.is_null() && !flag.is_boolean()) {
        reject(key, "is " + kvtuner_shown(flag) + ", not true or false");
    }
    return flag.is_boolean() && flag.get<bool>();
}

}  // namespace

kvtuner_plan_shape kvtuner_plan_shape_of(const json & model) {
    if (!model.is_object()) {
        throw std::runtime_error("'model' must be an object: tune the model again or remove the entry");
    }
    const uint64_t n_layer = count_of(model, "n_layer");
    if (n_layer > KVTUNER_MAX_PLAN_LAYERS) {
        reject("n_layer", "is " + std::to_string(n_layer) + ", more than " + std::to_string(KVTUNER_MAX_PLAN_LAYERS));
    }
    const json & heads = kvtuner_member(model, "n_head_kv");
    kvtuner_plan_shape shape;
    shape.n_head_kv =
            counts_of(kvtuner_is_count(heads) ? json(std::vector<json>(n_layer, heads)) : heads, "n_head_kv", n_layer);
    check_text(model, "architecture");
    shape.head_dim_k = per_layer(model, "head_dim_k", n_layer);
    shape.head_dim_v = per_layer(model, "head_dim_v", n_layer);
    check_text(model, "fingerprint");
    shape.window = has(model, "window") ? per_layer(model, "window", n_layer) : std::vector<uint64_t>(n_layer);
    shape.keeps = own_caches(model, n_layer);
    shape.latent = flag_of(model, "latent");
    if (has(model, "n_ctx")) {  // only counts bytes, which the library has from the model itself
        count_of(model, "n_ctx");
    }
    if (has(model, "turned")) {  // likewise
        per_layer(model, "turned", n_layer);
    }
    for (size_t il = 0; il < n_layer; ++il) {
        shape.keeps[il] = shape.keeps[il] && shape.n_head_kv[il] > 0;
    }
    return shape;
}
