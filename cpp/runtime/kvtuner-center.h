// Key centering: a vector per layer that is taken off every key before it is written.
//
// The softmax over keys does not change when all keys of a head move by the same vector c, since q.(k - c) = q.k - q.c
// and q.c is the same for every key: nothing is added back. Keys without their constant part lose less in a quantized
// cache. A cache that rotates gets keys that are rotated already, so that the vector is, too.
#pragma once

#include "kvtuner-plan.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <initializer_list>
#include <map>
#include <utility>
#include <vector>

struct llama_hparams;

// The vectors of one cache as tensors [head size, KV heads], beside the K tensors that they belong to.
class kvtuner_centers {
public:
    struct layer {
        uint32_t il;
        const ggml_tensor * k;  // where the vector is allocated, and the name under which it is found
    };

    // n_rot: values of a head that the cache rotates together, 0 for none. no_alloc: tensors without memory, for a
    // measurement of sizes
    void init(const kvtuner_plan & plan, const llama_hparams & hparams, const std::vector<layer> & layers,
              uint32_t n_rot, bool no_alloc);

    // null for a layer without a vector
    ggml_tensor * of(const ggml_tensor * k_storage) const;

private:
    std::map<const ggml_tensor *, ggml_tensor *> by_storage;
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;
};

// A hash over the values of a vector as the plan has it, kept from when they were stored: nothing is read back from its
// device.
uint32_t kvtuner_center_digest(const ggml_tensor * center);

// Adds tensors, null ones left out, to the graph before what is made of them: the steps that write a layer's keys and
// values then lie side by side.
void kvtuner_build_first(ggml_cgraph * graph, std::initializer_list<ggml_tensor *> tensors);

// x [head size, KV heads, tokens] less the center, or with it again; x itself where the center is null
ggml_tensor * kvtuner_center(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center);
ggml_tensor * kvtuner_uncenter(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center);
