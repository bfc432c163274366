#include "kvtuner-plan.h"

#include "kvtuner-strict-json.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <stdexcept>

using json = nlohmann::json;

static constexpr const char * SCHEMA = "kvtuner.plan/1";
static constexpr size_t MAX_LAYERS = 4096;
static constexpr size_t MAX_JSON_BYTES = 16u << 20;
static constexpr uint64_t MAX_COUNT = (1u << 31) - 1;

[[noreturn]] static void fail(const std::string & message) {
    throw std::runtime_error(message);
}

static std::string layer_name(size_t il) {
    return "layer " + std::to_string(il);
}

static uint64_t fnv1a_64(const std::string & text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (unsigned char byte : text) {
        hash = (hash ^ byte) * 0x100000001b3;
    }
    return hash;
}

static std::string hex(uint64_t number) {
    char text[17];
    snprintf(text, sizeof(text), "%016" PRIx64, number);
    return text;
}

// what a layer's entry in the fingerprint says of its center
static std::string center_digest(const std::vector<std::vector<float>> & vectors, size_t il, const char * name) {
    if (il >= vectors.size() || vectors[il].empty()) {
        return "";
    }
    const char * bytes = (const char *)vectors[il].data();
    return std::string(";") + name + "=" + hex(fnv1a_64({ bytes, vectors[il].size() * sizeof(float) }));
}

std::string kvtuner_plan_fingerprint(const kvtuner_plan & plan) {
    std::string text = SCHEMA;
    for (size_t il = 0; il < plan.type_k.size(); ++il) {
        text += ";" + std::to_string(il) + ":" + ggml_type_name(plan.type_k[il]) + "/" +
                ggml_type_name(plan.type_v[il]) + center_digest(plan.center_k, il, "center_k") +
                center_digest(plan.center_v, il, "center_v");
    }
    return hex(fnv1a_64(text));
}

kvtuner_plan_ptr kvtuner_plan_from_json(const std::string & text, const std::string & source) {
    const json data = parse_json(text);
    if (!data.is_object() || member(data, "schema") != SCHEMA) {
        fail(std::string("the schema is not ") + SCHEMA + ": tune the model with a matching version of kvtuner-gguf");
    }
    const json & layers = member(data, "layers");
    if (!layers.is_array() || layers.empty() || layers.size() > MAX_LAYERS) {
        fail("'layers' must be a list of 1 to " + std::to_string(MAX_LAYERS) + " layers: tune the model again");
    }
    const size_t n_layer = layers.size();

    kvtuner_plan plan;
    plan.type_k.assign(n_layer, GGML_TYPE_COUNT);
    plan.type_v.assign(n_layer, GGML_TYPE_COUNT);
    plan.center_k.resize(n_layer);
    plan.center_v.resize(n_layer);
    plan.source = source;
    for (const json & entry : layers) {
        const size_t il = layer_number(entry, n_layer);
        if (plan.type_k[il] != GGML_TYPE_COUNT) {
            fail("layer " + std::to_string(il) + " is given twice: keep one entry");
        }
        plan.type_k[il] = layer_type(entry, "k", il, "K");
        plan.type_v[il] = layer_type(entry, "v", il, "V");
        plan.center_k[il] = layer_center(entry, "center_k", il, "K");
        plan.center_v[il] = layer_center(entry, "center_v", il, "V");
    }
    return std::make_shared<const kvtuner_plan>(std::move(plan));
}

kvtuner_plan_ptr kvtuner_plan_from_file(const std::string & path) {
    try {
        std::ifstream file(path, std::ios::binary);
        if (!file) {
            fail("cannot be read: check the path, or use auto or none");
        }
        std::string text(MAX_JSON_BYTES + 1, '\0');
        file.read(&text[0], (std::streamsize)text.size());
        text.resize((size_t)file.gcount());
        return kvtuner_plan_from_json(text, path);
    } catch (const std::runtime_error & err) {
        fail("KV config " + path + ": " + err.what());
    }
}

static std::vector<ggml_type> types_from_key(const gguf_context * metadata, const std::string & key, uint32_t n_layer,
                                             const char * side) {
    const int64_t id = gguf_find_key(metadata, key.c_str());
    if (id < 0) {
        fail(key + " is missing while its counterpart is there: annotate the model again");
    }
    if (gguf_get_kv_type(metadata, id) == GGUF_TYPE_STRING) {
        return std::vector<ggml_type>(n_layer, type_from_name(gguf_get_val_str(metadata, id), 0, side));
    }
    if (gguf_get_kv_type(metadata, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(metadata, id) != GGUF_TYPE_STRING) {
        fail(key + " is no list of names: annotate the model again");
    }
    const size_t n = gguf_get_arr_n(metadata, id);
    if (n != n_layer) {
        fail(key + " has " + std::to_string(n) + " layers, the model " + std::to_string(n_layer) +
             ": annotate the model again");
    }
    std::vector<ggml_type> types;
    for (size_t il = 0; il < n; ++il) {
        types.push_back(type_from_name(gguf_get_arr_str(metadata, id, il), il, side));
    }
    return types;
}

kvtuner_plan_ptr kvtuner_plan_from_gguf(const gguf_context * metadata, const std::string & arch,
                                        const kvtuner_row_sizes & sizes) {
    const std::string prefix = arch + ".attention.kv_cache.";
    if (gguf_find_key(metadata, (prefix + "type_k").c_str()) < 0 &&
        gguf_find_key(metadata, (prefix + "type_v").c_str()) < 0) {
        return nullptr;
    }
    const uint32_t n_layer = (uint32_t)sizes.k.size();
    return std::make_shared<const kvtuner_plan>(kvtuner_plan{
            types_from_key(metadata, prefix + "type_k", n_layer, "K"),
            types_from_key(metadata, prefix + "type_v", n_layer, "V"),
            kvtuner_vectors_from_gguf(metadata, prefix + "center_k", sizes.k),
            kvtuner_vectors_from_gguf(metadata, prefix + "center_v", sizes.v),
            "metadata",
    });
}

bool kvtuner_gguf_has_plan(const gguf_context * metadata) {
    const int64_t id = gguf_find_key(metadata, "general.architecture");
    if (id < 0 || gguf_get_kv_type(metadata, id) != GGUF_TYPE_STRING) {
        return false;
    }
    const std::string arch = gguf_get_val_str(metadata, id);
    return gguf_find_key(metadata, (arch + ".attention.kv_cache.type_k").c_str()) >= 0;
}
