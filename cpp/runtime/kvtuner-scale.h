// Key scaling: a factor per layer, KV head and channel. Keys are multiplied by it and queries divided, so that their
// products stay what they are, while the channels that queries make more of take a larger share of the levels that a
// quantized cache has. Both channels of a pair that RoPE turns have the same factor: a context shift turns scaled keys.
#pragma once

#include <cstdint>

class llama_kv_cache_context;
struct ggml_context;
struct ggml_tensor;

// Puts scaled keys and queries of layer il, after RoPE and before the cache's rotation, in the place of k and q [head
// size, heads, tokens], if the layer has a scale. k is null where a layer stores none.
void kvtuner_scale(ggml_context * ctx, const llama_kv_cache_context & context, ggml_tensor *& q, ggml_tensor *& k,
                   int32_t il);
