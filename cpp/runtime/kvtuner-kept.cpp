#include "kvtuner-kept.h"

#include "ggml-alloc.h"

#include <stdexcept>
#include <string>

std::vector<uint8_t> kvtuner_bytes_of(const std::vector<float> & values) {
    const uint8_t * bytes = (const uint8_t *)values.data();
    return { bytes, bytes + values.size() * sizeof(float) };
}

// a buffer without memory keeps the scheduler from allocating what only stands for its size
static ggml_backend_buffer_t dummy_buffer(ggml_backend_buffer_type_t type, ggml_context * ctx) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, 0);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        t->buffer = buffer;
    }
    return buffer;
}

ggml_backend_buffer_t kvtuner_keep(ggml_backend_buffer_type_t type, ggml_context * ctx,
                                   const std::vector<kvtuner_kept_tensor> & kept, bool no_alloc, const char * what) {
    if (no_alloc) {
        return dummy_buffer(type, ctx);
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, type);
    if (!buffer) {
        throw std::runtime_error(std::string("failed to allocate ") + what);
    }
    for (const auto & [tensor, bytes] : kept) {
        ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
    }
    return buffer;
}

void kvtuner_rotation::init(ggml_backend_buffer_type_t type, const std::map<int64_t, std::vector<float>> & matrices,
                            bool no_alloc) {
    ctx.reset(ggml_init({ matrices.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
    std::vector<kvtuner_kept_tensor> kept;
    for (const auto & [n, values] : matrices) {
        ggml_tensor * matrix = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, n);
        ggml_format_name(matrix, "cache_rotation_%d", (int)n);
        kept.emplace_back(matrix, kvtuner_bytes_of(values));
        by_size[n] = matrix;
    }
    buffer.reset(kvtuner_keep(type, ctx.get(), kept, no_alloc, "the rotation of the KV cache"));
}

ggml_tensor * kvtuner_rotation::of(int64_t n) const {
    const auto found = by_size.find(n);
    return found == by_size.end() ? nullptr : found->second;
}
