// What a context really allocated, as JSON of the caller's own kind.
#pragma once

#include "kvtuner.h"

// {"first", "last", "type", "bytes"}, null without exact ends
template <typename json>
json kvtuner_ends_to_json(const llama_context * ctx) {
    uint32_t first = 0, last = 0;
    int32_t type = 0;
    if (!kvtuner_exact_ends(ctx, &first, &last, &type)) {
        return json();
    }
    return { { "first", first },
             { "last", last },
             { "type", ggml_type_name((ggml_type)type) },
             { "bytes", kvtuner_exact_ends_bytes(ctx) } };
}

// {"has_plan", "fingerprint", "source", "bits_per_value", "bytes", "centers_bytes", "mib", "ends", "layers": [{"layer",
// "k", "v", "center_k", "scale_k", "exact_ends"}, ...]}; the fingerprint is null without a plan, layers without a cache
// are left out, bytes are with the ends, bits without, and both without the tables of centers
template <typename json>
json kvtuner_cache_to_json(const llama_context * ctx) {
    json layers = json::array();
    for (int32_t il = 0; il < kvtuner_n_layer(ctx); ++il) {
        if (kvtuner_type_k(ctx, il) < 0) {
            continue;
        }
        layers.push_back({ { "layer", il },
                           { "k", ggml_type_name((ggml_type)kvtuner_type_k(ctx, il)) },
                           { "v", ggml_type_name((ggml_type)kvtuner_type_v(ctx, il)) },
                           { "center_k", kvtuner_is_centered_k(ctx, il) },
                           { "scale_k", kvtuner_is_scaled_k(ctx, il) },
                           { "exact_ends", kvtuner_has_exact_ends(ctx, il) } });
    }
    char fingerprint[17];
    const bool has_plan = kvtuner_fingerprint(ctx, fingerprint, sizeof(fingerprint)) > 0;
    return { { "has_plan", has_plan },
             { "fingerprint", has_plan ? json(fingerprint) : json() },
             { "source", kvtuner_source(ctx) },
             { "bits_per_value", kvtuner_bits_per_value(ctx) },
             { "bytes", kvtuner_kv_bytes(ctx) },
             { "centers_bytes", kvtuner_centers_bytes(ctx) },
             { "mib", kvtuner_kv_bytes(ctx) / 1048576.0 },
             { "ends", kvtuner_ends_to_json<json>(ctx) },
             { "layers", layers } };
}

// what a server tells of itself, with the cache of its context in `kv_cache`
template <typename meta>
meta kvtuner_with_cache(meta told, const llama_context * ctx) {
    told.kv_cache = kvtuner_cache_to_json<decltype(told.kv_cache)>(ctx);
    return told;
}
