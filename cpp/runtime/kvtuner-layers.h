// The layers of a context's KV caches, as allocated.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

class llama_kv_cache;
struct llama_context;
struct llama_memory_i;

struct kvtuner_layer_tensors {
    const ggml_tensor * k;
    const ggml_tensor * v;        // null where V is a view of K
    bool is_centered;             // K
    const ggml_tensor * centers;  // the table of them, null where one serves all positions
    bool is_scaled;               // K
    const ggml_tensor * exact_k;  // rows of the exact ends, null without
    const ggml_tensor * exact_v;
};

using kvtuner_layer_map = std::map<uint32_t, kvtuner_layer_tensors>;
using kvtuner_cache_list = std::vector<const llama_kv_cache *>;

// the caches of keys and values; those of index keys, compressed keys and recurrent states are left out
kvtuner_cache_list kvtuner_caches_of(llama_memory_i * memory);

kvtuner_layer_map kvtuner_layers_of(const llama_context & ctx);

// "q8_0/q4_0"
std::string kvtuner_pair_name(ggml_type type_k, ggml_type type_v);

// "0-3,7,9-11" of ascending numbers
std::string kvtuner_ranges(const std::vector<uint32_t> & layers);
