// A plan of cache types, read from JSON or from GGUF metadata. Knows nothing of models or caches.
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct kvtuner_plan {
    std::vector<ggml_type> type_k;  // one per layer
    std::vector<ggml_type> type_v;

    // what is taken off keys and values, [KV heads * head size] per layer; empty for a layer, or as a whole, without
    std::vector<std::vector<float>> center_k;
    std::vector<std::vector<float>> center_v;

    std::string source;  // "metadata", "JSON", or the path of the file

    bool has_center_k(uint32_t il) const {
        return il < center_k.size() && !center_k[il].empty();
    }
    bool has_center_v(uint32_t il) const {
        return il < center_v.size() && !center_v[il].empty();
    }
};

// How many values of K and of V a token has in each layer.
struct kvtuner_row_sizes {
    std::vector<uint32_t> k;
    std::vector<uint32_t> v;
};

using kvtuner_plan_ptr = std::shared_ptr<const kvtuner_plan>;

// The plan that a model carries and the one that is selected, which may be the same.
struct kvtuner_model_plans {
    kvtuner_plan_ptr metadata;
    std::string metadata_error;  // why the metadata holds no usable plan; empty where it holds none at all

    kvtuner_plan_ptr active;
    std::string active_error;  // set while "auto" is selected and the metadata is unusable
};

// The cache type called so, GGML_TYPE_COUNT where there is none, and what to say then of the value as shown.
ggml_type kvtuner_type_from_name(const std::string & name);
std::string kvtuner_unknown_type(const std::string & shown, const char * side);

// 16 hex digits, the same as `Plan.fingerprint` in Python: 64-bit FNV-1a over "kvtuner.plan/1;0:q8_0/q4_0;1:f16/f16"
// and so on. A layer's centers follow its types as ";center_k=" and the same hash over their float32 values.
std::string kvtuner_plan_fingerprint(const kvtuner_plan & plan);

// Read a plan from JSON text; throws std::runtime_error with one line that names layer, value and remedy.
kvtuner_plan_ptr kvtuner_plan_from_json(const std::string & text, const std::string & source = "JSON");

// The same from a file; the message names the file.
kvtuner_plan_ptr kvtuner_plan_from_file(const std::string & path);

// Read `{arch}.attention.kv_cache.type_k` and `.type_v`, a name per layer or one name for all layers, and `.center_k`
// and `.center_v`, float32 arrays of the sizes given. Null where the types are absent; throws where they are of no use.
kvtuner_plan_ptr kvtuner_plan_from_gguf(const gguf_context * metadata, const std::string & arch,
                                        const kvtuner_row_sizes & sizes);

bool kvtuner_gguf_has_plan(const gguf_context * metadata);
