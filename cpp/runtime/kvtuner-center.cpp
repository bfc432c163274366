#include "kvtuner-center.h"

#include "ggml-alloc.h"
#include "llama-hparams.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace {

// Where a center keeps the digest of its values: a tensor that no operation makes has no use for its parameters.
constexpr int DIGEST_AT = 0;

// FNV-1a
void keep_digest(ggml_tensor * row, const std::vector<float> & values) {
    const uint8_t * bytes = (const uint8_t *)values.data();
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < values.size() * sizeof(float); ++i) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    row->op_params[DIGEST_AT] = (int32_t)hash;
}

// the Walsh-Hadamard transform of n values at a time, a power of two, orthonormal
std::vector<float> rotated(std::vector<float> values, size_t n) {
    for (size_t step = 1; step < n; step *= 2) {
        for (size_t i = 0; i < values.size(); ++i) {
            if ((i & step) == 0) {
                const float low = values[i], high = values[i + step];
                values[i] = low + high;
                values[i + step] = low - high;
            }
        }
    }
    for (float & value : values) {
        value = n ? value / std::sqrt((float)n) : value;
    }
    return values;
}

using planned_tensor = std::pair<ggml_tensor *, std::vector<float>>;

// one row and a name like those of the cache, so that devices that split its heads split these alike
ggml_tensor * make_row(ggml_context * ctx, const std::vector<float> & values, uint32_t il) {
    ggml_tensor * row = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, (int64_t)values.size());
    ggml_format_name(row, "cache_k_center_l%u", il);
    keep_digest(row, values);
    return row;
}

// a buffer without memory keeps the scheduler from allocating what only stands for its size
ggml_backend_buffer_t dummy_buffer(ggml_backend_buffer_type_t buft, ggml_context * ctx) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buft, 0);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        t->buffer = buffer;
    }
    return buffer;
}

ggml_backend_buffer_t filled_buffer(ggml_backend_buffer_type_t buft, ggml_context * ctx,
                                    const std::vector<planned_tensor> & planned) {
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
    if (!buffer) {
        throw std::runtime_error("failed to allocate the centers of the KV cache");
    }
    for (const auto & [tensor, values] : planned) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
    return buffer;
}

}  // namespace

void kvtuner_centers::init(const kvtuner_plan & plan, const llama_hparams & hparams, const std::vector<layer> & layers,
                           uint32_t n_rot, bool no_alloc) {
    std::map<ggml_backend_buffer_type_t, std::vector<layer>> by_buft;
    for (const layer & l : layers) {
        if (plan.has_center_k(l.il)) {
            by_buft[ggml_backend_buffer_get_type(l.k->buffer)].push_back(l);
        }
    }
    for (const auto & [buft, group] : by_buft) {
        ggml_context_ptr ctx(ggml_init({ 2 * group.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        std::vector<planned_tensor> planned;
        for (const layer & l : group) {
            const std::vector<float> & values = plan.center_k[l.il];
            const int64_t head_size = hparams.n_embd_head_k(l.il);
            ggml_tensor * row = make_row(ctx.get(), values, l.il);
            by_storage[l.k] = ggml_reshape_2d(ctx.get(), row, head_size, (int64_t)values.size() / head_size);
            planned.emplace_back(row, rotated(values, n_rot));
        }
        ggml_backend_buffer_ptr buffer(no_alloc ? dummy_buffer(buft, ctx.get())
                                                : filled_buffer(buft, ctx.get(), planned));
        ctxs_bufs.emplace_back(std::move(ctx), std::move(buffer));
    }
}

ggml_tensor * kvtuner_centers::of(const ggml_tensor * k_storage) const {
    const auto it = by_storage.find(k_storage);
    return it == by_storage.end() ? nullptr : it->second;
}

uint32_t kvtuner_center_digest(const ggml_tensor * center) {
    return (uint32_t)center->view_src->op_params[DIGEST_AT];
}

void kvtuner_build_first(ggml_cgraph * graph, std::initializer_list<ggml_tensor *> tensors) {
    for (ggml_tensor * tensor : tensors) {
        if (tensor) {
            ggml_build_forward_expand(graph, tensor);
        }
    }
}

ggml_tensor * kvtuner_center(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center) {
    return center ? ggml_sub(ctx, x, center) : x;
}

ggml_tensor * kvtuner_uncenter(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center) {
    return center ? ggml_add(ctx, x, center) : x;
}
