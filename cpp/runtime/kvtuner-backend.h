// Which layers of a plan a back end attends slowly, and what would help.
#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_context;

struct kvtuner_attention_layer {
    uint32_t il;
    uint32_t head_size_k;
    uint32_t head_size_v;
    uint32_t n_head;
    uint32_t n_head_kv;
    ggml_type type_k;
    ggml_type type_v;
    ggml_type type_exact = GGML_TYPE_COUNT;  // of rows beside the cache; that: none
    bool has_centers = false;                // of blocks of positions
    bool has_sinks = false;
};

// One line that names the layers, the pairs and the remedy, for layers that live on one device and that it would attend
// faster with an f16 cache; empty where there are none. A plan runs right all the same: the work falls back to
// converted copies or to the CPU.
std::string kvtuner_slow_layers(ggml_backend_dev_t device, const std::vector<kvtuner_attention_layer> & layers);

// The devices behind one that splits every tensor among several (--split-mode tensor); any other device alone.
std::vector<ggml_backend_dev_t> kvtuner_simple_devices(ggml_backend_dev_t device);

// Whether a device can write rows of row_size values into a cache of this type; where it cannot, no context works.
bool kvtuner_can_write(ggml_backend_dev_t device, ggml_type type, int64_t row_size);

// Why a device that compiles kernels when they are asked for cannot run those of a layer; empty where it can. Kernels
// that no back end has leave the work to others.
std::string kvtuner_kernels_problem(ggml_backend_dev_t device, const kvtuner_attention_layer & layer);

// Whether attention on a device reads what a plan has beside a cache: exact rows, centers of blocks of positions.
bool kvtuner_reads_beside(ggml_backend_dev_t device);

// Warn once per device of a context whose cache follows a plan.
void kvtuner_warn_slow_layers(const llama_context & ctx);
