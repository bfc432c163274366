// What a context really allocated, as JSON of the caller's own kind.
#pragma once

#include "kvtuner.h"

// {"has_plan", "bits_per_value", "bytes", "layers": [{"layer", "k", "v"}, ...]}; layers without a cache are left out
template <typename json>
json kvtuner_cache_to_json(const llama_context * ctx) {
    json layers = json::array();
    for (int32_t il = 0; il < kvtuner_n_layer(ctx); ++il) {
        if (kvtuner_type_k(ctx, il) < 0) {
            continue;
        }
        layers.push_back({ { "layer", il },
                           { "k", ggml_type_name((ggml_type)kvtuner_type_k(ctx, il)) },
                           { "v", ggml_type_name((ggml_type)kvtuner_type_v(ctx, il)) } });
    }
    return { { "has_plan", kvtuner_has_plan(ctx) },
             { "bits_per_value", kvtuner_bits_per_value(ctx) },
             { "bytes", (int64_t)kvtuner_kv_bytes(ctx) },
             { "layers", layers } };
}
