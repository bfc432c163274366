// A slow reference of a mixed KV cache: a context with f32 K and V whose rows an eval callback rounds in place.
//
// After every write into the cache and after every context shift it takes the rows just written through rotation,
// centering, quantization and all that back, value by value and with ggml's reference quantizers. Attention then
// reads what a cache of the plan's types would give back, without any of the code that the plan is run by.
#pragma once

#include "kvtuner-plan.h"

#include "llama.h"

#include <cstdint>
#include <unordered_map>
#include <vector>

class llama_kv_cache;

// What happens to the rows of one tensor of the cache.
struct slow_rounding {
    ggml_type type;
    int64_t rotation;           // block of the Walsh-Hadamard transform, which divides the head size; 0 for none
    std::vector<float> scale;   // by what a row is multiplied first; empty for none
    std::vector<float> center;  // what a row is less of, before it is scaled and rotated; empty for none
    bool is_v;
};

// Transform blocks of n values, a power of two, orthonormally and in place: its own inverse.
void slow_rotate(float * values, int64_t n_values, int64_t n);

// Give back n_values as a cache of this type would.
void slow_round(const slow_rounding & rounding, float * values, int64_t n_values);

class slow_cache {
public:
    // Parameters of a context that this object will follow; both types become f32.
    void attach(llama_context_params & params);

    // Once the context exists: round its layers by the plan.
    void follow(const llama_context & ctx, const kvtuner_plan & plan);

    // Deliberate mistakes, which a comparison must find: no rotation, no center, or no scale, of the first quantized
    // tensor that has one.
    void forget_a_rotation();
    void forget_a_center();
    void forget_a_scale();

private:
    void follow_layer(const llama_kv_cache & cache, uint32_t il, const kvtuner_plan & plan, int64_t rotation_k,
                      int64_t rotation_v);
    slow_rounding * first_quantized(bool (*has)(const slow_rounding &));
    const slow_rounding * find(const ggml_tensor * node) const;
    void on_set_rows(ggml_tensor * node, const slow_rounding & rounding) const;
    static bool on_node(ggml_tensor * node, bool ask, void * self);

    std::vector<const ggml_tensor *> order;
    std::unordered_map<const ggml_tensor *, slow_rounding> tensors;
};
