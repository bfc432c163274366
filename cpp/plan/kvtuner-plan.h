// A plan of cache types, read from JSON or from GGUF metadata. Knows nothing of models or caches.
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

// A query at position t reads the first positions and the last (t - last < p <= t) as they were before quantization,
// from rows of this type. Both are 0 where a plan has no ends.
struct kvtuner_ends {
    uint32_t first = 0;
    uint32_t last = 0;
    ggml_type type = GGML_TYPE_F16;  // or q8_0

    uint32_t n_positions() const {
        return first + last;
    }
};

struct kvtuner_plan {
    std::vector<ggml_type> type_k;  // one per layer
    std::vector<ggml_type> type_v;

    // what is taken off keys, [KV heads * head size] per layer; empty for a layer, or as a whole, without
    std::vector<std::vector<float>> center_k;

    // by what keys are multiplied and queries divided, likewise; both channels of a pair that RoPE turns have the same,
    // and centers are those of keys without it
    std::vector<std::vector<float>> scale_k;

    // positions of a block, whose keys lose the centers as RoPE turns them by its first position; 0 where one center
    // serves all positions
    uint32_t center_span = 0;

    kvtuner_ends ends;

    std::string source;  // "metadata", "JSON", or the path of the file

    bool has_center_k(uint32_t il) const {
        return il < center_k.size() && !center_k[il].empty();
    }

    bool has_scale_k(uint32_t il) const {
        return il < scale_k.size() && !scale_k[il].empty();
    }
};

using kvtuner_plan_ptr = std::shared_ptr<const kvtuner_plan>;

// A plan, or none, or why there is no usable one: then the error is not empty.
struct kvtuner_selection {
    kvtuner_plan_ptr plan;
    std::string error;
};

// The plan that a model carries and the one that is selected, which may be the same. One thread may select while others
// create contexts: each reads the selection once, as a whole.
class kvtuner_model_plans {
public:
    kvtuner_selection metadata;  // set before the model is shared

    kvtuner_selection selected() const {
        std::lock_guard<std::mutex> lock(mutex);
        return selection;
    }

    void select(kvtuner_selection chosen) {
        std::lock_guard<std::mutex> lock(mutex);
        selection = std::move(chosen);
    }

private:
    mutable std::mutex mutex;
    kvtuner_selection selection;
};

// The cache type called so, GGML_TYPE_COUNT where there is none, and what to say then of the value as shown.
ggml_type kvtuner_type_from_name(const std::string & name);
std::string kvtuner_unknown_type(const std::string & shown, const char * side);

// 16 hex digits, the same as `Plan.fingerprint` in Python: 64-bit FNV-1a over "kvtuner.plan/1;0:q8_0/q4_0;1:f16/f16"
// and so on. A layer's centers follow its types as ";center_k=" and the same hash over their float32 values, then its
// scales as ";scale_k=". The span of the centers and the ends follow all layers as ";center_span=256" and
// ";ends=4+32:f16".
std::string kvtuner_plan_fingerprint(const kvtuner_plan & plan);

// Read a plan from JSON text; throws std::runtime_error with one line that names layer, value and remedy.
kvtuner_plan_ptr kvtuner_plan_from_json(const std::string & text, const std::string & source = "JSON");

// The same from a file; the message names the file.
kvtuner_plan_ptr kvtuner_plan_from_file(const std::string & path);

// Read `{arch}.attention.kv_cache.type_k` and `.type_v`, a name per layer or one name for all layers, `.center_k`, a
// float32 array with so many values of each layer, `.center_span`, `.scale_k`, an array likewise, and `.exact_first`,
// `.exact_last` and `.exact_type`, the ends. Null where the types are absent; throws where they are of no use.
kvtuner_plan_ptr kvtuner_plan_from_gguf(const gguf_context * metadata, const std::string & arch,
                                        const std::vector<uint32_t> & sizes_k);

bool kvtuner_gguf_has_plan(const gguf_context * metadata);
