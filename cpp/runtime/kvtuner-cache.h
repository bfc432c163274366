// What our patches and our code ask of upstream's KV cache beyond its own methods: a friend of its classes.
#pragma once

#include "kvtuner-center.h"

#include <cstdint>

class llama_kv_cache;
class llama_kv_cache_context;
class llama_kv_cache_iswa_context;
class llm_graph_input_attn_kv_iswa;
struct ggml_context;
struct ggml_tensor;

struct kvtuner_cache {
    // null where V is a view of K
    static ggml_tensor * v_storage(const llama_kv_cache & cache, uint32_t il);

    // whether a layer has a quantized type: the cache rotates all then
    static bool any_quantized_k(const llama_kv_cache & cache);
    static bool any_quantized_v(const llama_kv_cache & cache);

    // whether keys, or values, lie in the cache rotated
    static bool is_rotated_k(const llama_kv_cache & cache);
    static bool is_rotated_v(const llama_kv_cache & cache);

    // whether the graphs of this model rotate without a plan, too
    static bool is_rotated_upstream(const llama_kv_cache & cache);

    // once the tensors and the rotation are there
    static void init(llama_kv_cache & cache);

    // what the keys of layer il are less of, or null
    static ggml_tensor * center(const llama_kv_cache & cache, uint32_t il);

    // the rotation that a context shift takes back, or null
    static ggml_tensor * shifted_rotation(const llama_kv_cache & cache, ggml_tensor * rotation);

    // True if a context shift converts the keys of layer il to f32 and back, which takes whole heads: rows of a
    // quantized type are written back whole, a rotated head is not rotated back in part, and a center belongs to the
    // whole key. Other layers are shifted in place.
    static bool shifts_whole_heads(const llama_kv_cache & cache, uint32_t il);

    // with a plan, the rotation in a graph of a hybrid model with a sliding window, which upstream's leaves out
    static void build_rotation(ggml_context * ctx, const llama_kv_cache_iswa_context & context,
                               llm_graph_input_attn_kv_iswa & input);
};
