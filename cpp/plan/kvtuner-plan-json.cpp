// Plans in JSON. The checks, their order and their words are those of kvtuner_gguf/plan/plan.py, layerlist.py, ends.py
// and shapefields.py.

#include "kvtuner-plan.h"

#include "kvtuner-plan-ends.h"
#include "kvtuner-plan-shape.h"
#include "kvtuner-strict-json.h"
#include "kvtuner-vectors.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

using json = nlohmann::json;

static constexpr const char * PLAN_SCHEMA = "kvtuner.plan/1";
static constexpr size_t MAX_JSON_BYTES = 16u << 20;

namespace {

[[noreturn]] void reject(const std::string & message) {
    throw std::runtime_error(message);
}

std::string layer_name(size_t il) {
    return "layer " + std::to_string(il);
}

// the entries of all layers, from layer 0 on
std::vector<const json *> ordered_layers(const json & layers) {
    if (!layers.is_array() || layers.empty()) {
        reject("'layers' must be a list of {layer, k, v}: see configs/plan.schema.json");
    }
    if (layers.size() > KVTUNER_MAX_PLAN_LAYERS) {
        reject("'layers' has " + std::to_string(layers.size()) + " entries, more than " +
               std::to_string(KVTUNER_MAX_PLAN_LAYERS) + ": tune the model again");
    }
    std::vector<size_t> numbers;
    std::vector<const json *> entries(layers.size());
    for (const json & entry : layers) {
        const json & number = kvtuner_member(entry, "layer");
        if (!kvtuner_is_count(number)) {
            reject("a layer entry has the number " + kvtuner_shown(number) + ": give a whole number from 0");
        }
        const size_t il = number.get<size_t>();
        if (std::find(numbers.begin(), numbers.end(), il) != numbers.end()) {
            reject(layer_name(il) + " is given twice: keep one entry");
        }
        numbers.push_back(il);
        if (il < entries.size()) {
            entries[il] = &entry;
        }
    }
    const auto missing = std::find(entries.begin(), entries.end(), nullptr);
    if (missing != entries.end()) {
        reject(layer_name((size_t)(missing - entries.begin())) + " is missing of " + std::to_string(entries.size()) +
               ": number the layers from 0 without a gap");
    }
    return entries;
}

ggml_type layer_type(const json & entry, const char * key, size_t il, const char * side) {
    const json & name = kvtuner_member(entry, key);
    const ggml_type type = name.is_string() ? kvtuner_type_from_name(name.get<std::string>()) : GGML_TYPE_COUNT;
    if (type == GGML_TYPE_COUNT) {
        reject(layer_name(il) + ": " + kvtuner_unknown_type(kvtuner_shown(name), side));
    }
    return type;
}

std::vector<float> layer_vector(const json & text, size_t il, kvtuner_vector_kind kind) {
    if (!text.is_null() && !text.is_string()) {
        reject(kvtuner_vector_name(il, kind) + "is no base64: tune the model again");
    }
    return text.is_null() ? std::vector<float>() : kvtuner_vector_from_base64(text.get<std::string>(), il, kind);
}

std::vector<std::vector<float>> layer_centers(const std::vector<const json *> & entries) {
    std::vector<std::vector<float>> vectors;
    for (size_t il = 0; il < entries.size(); ++il) {
        if (!kvtuner_member(*entries[il], "center_v").is_null()) {
            reject(layer_name(il) + ": center_v is no longer used, since centers give values nothing: remove it");
        }
        vectors.push_back(layer_vector(kvtuner_member(*entries[il], "center_k"), il, kvtuner_vector_kind::CENTER));
    }
    return vectors;
}

std::vector<std::vector<float>> layer_scales(const std::vector<const json *> & entries) {
    std::vector<std::vector<float>> vectors;
    for (size_t il = 0; il < entries.size(); ++il) {
        vectors.push_back(layer_vector(kvtuner_member(*entries[il], "scale_k"), il, kvtuner_vector_kind::SCALE));
    }
    return vectors;
}

void check_blocks(size_t il, const char * side, ggml_type type, uint64_t head_dim) {
    const uint64_t block = (uint64_t)ggml_blck_size(type);
    if (head_dim % block != 0) {
        reject(layer_name(il) + ": " + side + " type " + ggml_type_name(type) + " has blocks of " +
               std::to_string(block) + " values, which do not divide the head size " + std::to_string(head_dim) +
               ": use f16 there");
    }
}

std::vector<uint64_t> sizes_k(const kvtuner_plan_shape & shape) {
    std::vector<uint64_t> sizes;
    for (size_t il = 0; il < shape.n_head_kv.size(); ++il) {
        sizes.push_back(shape.n_head_kv[il] * shape.head_dim_k[il]);
    }
    return sizes;
}

void check_model(const kvtuner_plan & plan, const kvtuner_plan_shape & shape) {
    const size_t n_layer = shape.n_head_kv.size();
    if (plan.type_k.size() != n_layer) {
        reject("the plan has " + std::to_string(plan.type_k.size()) + " layers, the model " + std::to_string(n_layer) +
               ": use a plan that was tuned for this model");
    }
    for (size_t il = 0; il < n_layer; ++il) {
        if (shape.keeps[il]) {
            check_blocks(il, "K", plan.type_k[il], shape.head_dim_k[il]);
            check_blocks(il, "V", plan.type_v[il], shape.head_dim_v[il]);
        }
        kvtuner_check_ends(plan, shape, il);
    }
    kvtuner_check_vectors(plan.center_k, sizes_k(shape), kvtuner_vector_kind::CENTER);
    kvtuner_check_vectors(plan.scale_k, sizes_k(shape), kvtuner_vector_kind::SCALE);
}

void check_size(size_t n_bytes) {
    if (n_bytes > MAX_JSON_BYTES) {
        reject("more than " + std::to_string(MAX_JSON_BYTES >> 20) + " MiB is no plan: check the path");
    }
}

// at most one byte more than a plan may have
std::string read_file(const std::string & path) {
    std::unique_ptr<FILE, int (*)(FILE *)> file(fopen(path.c_str(), "rb"), fclose);
    std::string text(file ? MAX_JSON_BYTES + 1 : 0, '\0');
    text.resize(file ? fread(&text[0], 1, text.size(), file.get()) : 0);
    if (!file || ferror(file.get())) {
        reject("cannot be read: check the path, or use auto or none (" + std::string(strerror(errno)) + ")");
    }
    return text;
}

}  // namespace

kvtuner_plan_ptr kvtuner_plan_from_json(const std::string & text, const std::string & source) {
    check_size(text.size());
    const json data = kvtuner_parse_json(text);
    if (!data.is_object()) {
        reject("a plan is a JSON object with 'schema' and 'layers': see configs/plan.schema.json");
    }
    const json & schema = kvtuner_member(data, "schema");
    if (schema != PLAN_SCHEMA) {
        reject("the plan's schema is " + kvtuner_shown(schema) + ", not '" + PLAN_SCHEMA + "': tune with this version");
    }
    if (data.contains("provenance") && !kvtuner_member(data, "provenance").is_object()) {
        reject("'provenance' must be an object: remove it or tune again");
    }
    const std::vector<const json *> entries = ordered_layers(kvtuner_member(data, "layers"));
    kvtuner_plan plan;
    for (size_t il = 0; il < entries.size(); ++il) {
        plan.type_k.push_back(layer_type(*entries[il], "k", il, "K"));
        plan.type_v.push_back(layer_type(*entries[il], "v", il, "V"));
    }
    const json & model = kvtuner_member(data, "model");
    const kvtuner_plan_shape shape = model.is_null() ? kvtuner_plan_shape() : kvtuner_plan_shape_of(model);
    plan.center_k = layer_centers(entries);
    plan.center_span = kvtuner_center_span_of(kvtuner_member(data, "center_span"), plan.center_k);
    plan.scale_k = layer_scales(entries);
    plan.ends = kvtuner_ends_of(kvtuner_member(data, "ends"));
    if (!model.is_null()) {
        check_model(plan, shape);
    }
    plan.source = source;
    return std::make_shared<const kvtuner_plan>(std::move(plan));
}

kvtuner_plan_ptr kvtuner_plan_from_file(const std::string & path) {
    try {
        return kvtuner_plan_from_json(read_file(path), path);
    } catch (const std::runtime_error & err) {
        reject("KV config " + path + ": " + err.what());
    }
}
