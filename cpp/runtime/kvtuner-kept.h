// Tensors beside a cache that have the same values for as long as it lives.
#pragma once

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

// a tensor without memory yet, and the bytes that it is to have
using kvtuner_kept_tensor = std::pair<ggml_tensor *, std::vector<uint8_t>>;

std::vector<uint8_t> kvtuner_bytes_of(const std::vector<float> & values);

// Gives all tensors of `ctx` memory of this type and those in `kept` their bytes. no_alloc: memory that only stands for
// its size. Throws std::runtime_error where there is none left for `what`.
ggml_backend_buffer_t kvtuner_keep(ggml_backend_buffer_type_t type, ggml_context * ctx,
                                   const std::vector<kvtuner_kept_tensor> & kept, bool no_alloc, const char * what);

// The matrices by which a cache rotates, where its layers are. Elsewhere they are inputs, copied for every graph.
class kvtuner_rotation {
public:
    // [n, n] values of each size n
    void init(ggml_backend_buffer_type_t type, const std::map<int64_t, std::vector<float>> & matrices, bool no_alloc);

    // null where it is none of those
    ggml_tensor * of(int64_t n) const;

private:
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
    std::map<int64_t, ggml_tensor *> by_size;
};
