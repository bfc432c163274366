// Key centering: a vector per layer that is taken off every key before it is written.
//
// The softmax over keys does not change when all keys of a head move by the same vector c, since q.(k - c) = q.k - q.c
// and q.c is the same for every key: nothing is added back. Keys without their constant part lose less in a quantized
// cache. A cache that rotates gets keys that are rotated already, so that the vector is, too.
//
// Where keys have a scale (kvtuner-scale.h), so have their centers.
//
// With a span each block of positions has a vector of its own, that of the first block as RoPE turns it. Attention then
// adds q.c of the block to the scores of its keys.
#pragma once

#include "kvtuner-blocks.h"
#include "kvtuner-plan.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <initializer_list>
#include <map>
#include <utility>
#include <vector>

// what the keys of a layer are less of, times their scale: one of the two tensors
struct kvtuner_center {
    ggml_tensor * single;  // f32 [head size, KV heads]
    ggml_tensor * table;   // f16 [head size * KV heads, blocks]
    uint32_t digest;       // a hash over the values, kept from when they were stored
};

// by what the keys of a layer are multiplied
struct kvtuner_key_scale {
    ggml_tensor * factors;  // f32 [head size, KV heads]
    uint32_t digest;
};

// The centers and scales of one cache as tensors beside the K tensors that they belong to.
class kvtuner_centers {
public:
    struct layer {
        uint32_t il;
        const ggml_tensor * k;  // where the vectors are allocated, and the name under which they are found
        int64_t head_size;
        std::vector<float> center;               // empty: none
        std::vector<std::vector<float>> blocks;  // where each block has its own; empty: one serves all
        std::vector<float> scale;                // empty: none; centers are those of keys without it
    };

    // n_rot: values of a head that the cache rotates together, 0 for none. no_alloc: tensors without memory, for a
    // measurement of sizes
    void init(const std::vector<layer> & layers, uint32_t n_rot, bool no_alloc);

    // null for a layer without one
    const kvtuner_center * of(const ggml_tensor * k_storage) const;
    const kvtuner_key_scale * scale_of(const ggml_tensor * k_storage) const;

    mutable kvtuner_center_blocks blocks;  // of cells; graphs only add inputs to them

private:
    std::map<const ggml_tensor *, kvtuner_center> by_storage;
    std::map<const ggml_tensor *, kvtuner_key_scale> scales;
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;
};

// The vectors that x [head size, KV heads, tokens] is less of; null where there are none. blocks: I32 [tokens], read
// where there is a table.
ggml_tensor * kvtuner_center_rows(ggml_context * ctx, const kvtuner_center * center, const ggml_tensor * x,
                                  ggml_tensor * blocks);

// Adds tensors, null ones left out, to the graph before what is made of them: the steps that write a layer's keys and
// values then lie side by side.
void kvtuner_build_first(ggml_cgraph * graph, std::initializer_list<ggml_tensor *> tensors);
