// What our patches ask of a KV cache beyond its own methods.
#pragma once

#include <cstdint>

class llama_kv_cache;

// True if a context shift converts the keys of layer il to f32 and back, which takes whole heads: rows of a quantized
// type are written back whole, a rotated head is not rotated back in part, and a center belongs to the whole key. Other
// layers are shifted in place.
bool kvtuner_shifts_whole_heads(const llama_kv_cache & cache, uint32_t il);
