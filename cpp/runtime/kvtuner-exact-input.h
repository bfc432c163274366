// The inputs that exact ends add to a graph: where new rows go, which rows queries read, and what they see there. They
// belong to the mask of a cache: it is built, and set, before them. Without exact ends these calls do nothing.
#pragma once

#include <cstdint>

class llama_kv_cache_context;
struct ggml_cgraph;
struct ggml_context;
struct ggml_tensor;
struct llama_ubatch;

// once the mask is there
void kvtuner_build_exact(ggml_context * ctx, const llama_kv_cache_context & context, const llama_ubatch & ubatch,
                         const ggml_tensor * mask);

// once the mask is set: takes what is read exactly out of it
void kvtuner_set_exact(const llama_kv_cache_context & context, const llama_ubatch & ubatch, ggml_tensor * mask);

// Adds the writes of a layer's new keys and values [head size, KV heads, tokens], which go to the cache, too, at
// k_idxs: keys are less of the same centers.
void kvtuner_write_exact(ggml_context * ctx, ggml_cgraph * graph, const llama_kv_cache_context & context,
                         const ggml_tensor * mask, const ggml_tensor * k_idxs, ggml_tensor * k, ggml_tensor * v,
                         int32_t il);

// gives the attention from which `cur` was made the exact rows of layer il
void kvtuner_read_exact(ggml_context * ctx, ggml_cgraph * graph, const llama_kv_cache_context & context,
                        const ggml_tensor * mask, ggml_tensor * cur, int32_t il);
