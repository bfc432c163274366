// Key and value centering: a vector per layer that is taken off every key (or value) before it is written.
//
// The softmax over keys does not change when all keys of a head move by the same vector c, since q.(k - c) = q.k - q.c
// and q.c is the same for every key: nothing is added back. Attention weights sum to 1, so a value's vector is added
// once to the attention output. Keys and values without their constant part lose less in a quantized cache.
#pragma once

#include "ggml-cpp.h"

#include <cstdint>
#include <initializer_list>
#include <map>
#include <utility>
#include <vector>

struct kvtuner_plan;
struct llama_hparams;

// The vectors of one cache as tensors [head size, KV heads], beside the K tensors that they belong to.
class kvtuner_centers {
public:
    struct layer {
        uint32_t il;
        const ggml_tensor * k;  // where the vectors are allocated, and the name under which they are found
    };

    // no_alloc: tensors without memory, for a measurement of sizes
    void init(const kvtuner_plan & plan, const llama_hparams & hparams, const std::vector<layer> & layers,
              bool no_alloc);

    // null for a layer without a vector
    ggml_tensor * k(const ggml_tensor * k_storage) const;
    ggml_tensor * v(const ggml_tensor * k_storage) const;

private:
    struct vectors {
        ggml_tensor * k;
        ggml_tensor * v;
    };

    std::map<const ggml_tensor *, vectors> by_storage;
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;
};

// A hash over the values of a vector, kept from when they were stored: nothing is read back from its device.
uint32_t kvtuner_center_digest(const ggml_tensor * center);

// Adds tensors, null ones left out, to the graph before what is made of them: the steps that write a layer's keys and
// values then lie side by side.
void kvtuner_build_first(ggml_cgraph * graph, std::initializer_list<ggml_tensor *> tensors);

// x [head size, KV heads, tokens] less the center; x itself where either is null
ggml_tensor * kvtuner_center(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center);

// the center added back to x [head size, KV heads, tokens]
ggml_tensor * kvtuner_uncenter(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center);

// the attention output [head size * heads, tokens] plus the center of the values of each head
ggml_tensor * kvtuner_uncenter_output(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * center);
