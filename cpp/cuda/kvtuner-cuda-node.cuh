// What plans of kernels read of a node.
#pragma once

#include "kvtuner-cuda-attention-args.cuh"
#include "kvtuner-rotations.h"

#include <initializer_list>
#include <optional>

namespace kvtuner::cuda {

constexpr int MOST_FEW = 16;  // queries of a sequence that have kernels of their own; more have those of a prefill

struct device_limits {
    int n_multiprocessors;
    int shared_bytes;  // that one block of threads can have; so many a multiprocessor has
    bool takes_rows;   // whether it copies whole rows
};

std::optional<cache_kind> kind_of(ggml_type type);

// whether the kernels read its types and layout, head sizes apart
bool is_read(const ggml_tensor * node);

// all but the rows that parts have
void set_node(const ggml_tensor * node, const rotations & around, node_args & args);

// The longest chunk that rows can be copied in: it divides all these numbers of bytes. 0: there is none.
int chunk_for(std::initializer_list<int64_t> numbers);

divisor divisor_of(int d);

}  // namespace kvtuner::cuda
