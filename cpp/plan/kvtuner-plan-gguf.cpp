#include "kvtuner-plan.h"

#include "kvtuner-plan-ends.h"
#include "kvtuner-strict-json.h"
#include "kvtuner-vectors.h"

#include <stdexcept>

[[noreturn]] static void fail(const std::string & message) {
    throw std::runtime_error(message);
}

static ggml_type type_from_text(const char * name, size_t il, const char * side) {
    const ggml_type type = kvtuner_type_from_name(name);
    if (type == GGML_TYPE_COUNT) {
        fail("layer " + std::to_string(il) + ": " + kvtuner_unknown_type(kvtuner_quoted(name), side));
    }
    return type;
}

// as kvtuner_shown
static std::string shown_scalar(const gguf_context * metadata, int64_t id) {
    switch (gguf_get_kv_type(metadata, id)) {
        case GGUF_TYPE_UINT8:
            return std::to_string(gguf_get_val_u8(metadata, id));
        case GGUF_TYPE_INT8:
            return std::to_string(gguf_get_val_i8(metadata, id));
        case GGUF_TYPE_UINT16:
            return std::to_string(gguf_get_val_u16(metadata, id));
        case GGUF_TYPE_INT16:
            return std::to_string(gguf_get_val_i16(metadata, id));
        case GGUF_TYPE_UINT32:
            return std::to_string(gguf_get_val_u32(metadata, id));
        case GGUF_TYPE_INT32:
            return std::to_string(gguf_get_val_i32(metadata, id));
        case GGUF_TYPE_UINT64:
            return std::to_string(gguf_get_val_u64(metadata, id));
        case GGUF_TYPE_INT64:
            return std::to_string(gguf_get_val_i64(metadata, id));
        case GGUF_TYPE_BOOL:
            return gguf_get_val_bool(metadata, id) ? "True" : "False";
        default:
            return "a number";
    }
}

static std::vector<ggml_type> types_from_key(const gguf_context * metadata, const std::string & key, uint32_t n_layer,
                                             const char * side) {
    const int64_t id = gguf_find_key(metadata, key.c_str());
    if (id < 0) {
        fail(key + " is missing while its counterpart is there: annotate the model again");
    }
    if (gguf_get_kv_type(metadata, id) == GGUF_TYPE_STRING) {
        return std::vector<ggml_type>(n_layer, type_from_text(gguf_get_val_str(metadata, id), 0, side));
    }
    if (gguf_get_kv_type(metadata, id) != GGUF_TYPE_ARRAY) {
        fail(key + " has the value " + shown_scalar(metadata, id) + ", no list of names: annotate the model again");
    }
    const size_t n = gguf_get_arr_n(metadata, id);
    if (n != n_layer) {
        fail(key + " has " + std::to_string(n) + " entries, the model " + std::to_string(n_layer) +
             " layers: annotate the model again");
    }
    if (gguf_get_arr_type(metadata, id) != GGUF_TYPE_STRING) {
        fail("layer 0: " + key + " holds no name: annotate the model again");
    }
    std::vector<ggml_type> types;
    for (size_t il = 0; il < n; ++il) {
        types.push_back(type_from_text(gguf_get_arr_str(metadata, id, il), il, side));
    }
    return types;
}

static uint32_t span_from_key(const gguf_context * metadata, const std::string & key,
                              const std::vector<std::vector<float>> & centers) {
    const int64_t id = gguf_find_key(metadata, key.c_str());
    if (id < 0) {
        return 0;
    }
    if (gguf_get_kv_type(metadata, id) != GGUF_TYPE_UINT32) {
        fail(key + " is no uint32: annotate the model again");
    }
    return kvtuner_center_span_of(gguf_get_val_u32(metadata, id), centers);
}

kvtuner_plan_ptr kvtuner_plan_from_gguf(const gguf_context * metadata, const std::string & arch,
                                        const std::vector<uint32_t> & sizes_k) {
    const std::string prefix = arch + ".attention.kv_cache.";
    if (gguf_find_key(metadata, (prefix + "type_k").c_str()) < 0 &&
        gguf_find_key(metadata, (prefix + "type_v").c_str()) < 0) {
        return nullptr;
    }
    if (gguf_find_key(metadata, (prefix + "center_v").c_str()) >= 0) {
        fail(prefix + "center_v is no longer used, since centers give values nothing: annotate the model again");
    }
    const uint32_t n_layer = (uint32_t)sizes_k.size();
    kvtuner_plan plan;
    plan.type_k = types_from_key(metadata, prefix + "type_k", n_layer, "K");
    plan.type_v = types_from_key(metadata, prefix + "type_v", n_layer, "V");
    plan.center_k = kvtuner_vectors_from_gguf(metadata, prefix + "center_k", sizes_k, kvtuner_vector_kind::CENTER);
    plan.center_span = span_from_key(metadata, prefix + "center_span", plan.center_k);
    plan.scale_k = kvtuner_vectors_from_gguf(metadata, prefix + "scale_k", sizes_k, kvtuner_vector_kind::SCALE);
    plan.ends = kvtuner_ends_from_gguf(metadata, prefix);
    plan.source = "metadata";
    return std::make_shared<const kvtuner_plan>(std::move(plan));
}

bool kvtuner_gguf_has_plan(const gguf_context * metadata) {
    const int64_t id = gguf_find_key(metadata, "general.architecture");
    if (id < 0 || gguf_get_kv_type(metadata, id) != GGUF_TYPE_STRING) {
        return false;
    }
    const std::string arch = gguf_get_val_str(metadata, id);
    return gguf_find_key(metadata, (arch + ".attention.kv_cache.type_k").c_str()) >= 0;
}
