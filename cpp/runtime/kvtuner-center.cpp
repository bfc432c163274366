#include "kvtuner-center.h"

#include "kvtuner-plan.h"

#include "ggml-alloc.h"
#include "llama-hparams.h"

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

using planned_tensor = std::pair<ggml_tensor *, const std::vector<float> *>;

ggml_tensor * make_tensor(ggml_context * ctx, const std::vector<std::vector<float>> & vectors, uint32_t il,
                          int64_t head_size, const char * name, std::vector<planned_tensor> & planned) {
    if (il >= vectors.size() || vectors[il].empty()) {
        return nullptr;
    }
    // one row and a name like those of the cache, so that devices that split its heads split these alike
    const int64_t n = (int64_t)vectors[il].size();
    ggml_tensor * row = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n);
    ggml_format_name(row, "cache_%s_center_l%u", name, il);
    planned.emplace_back(row, &vectors[il]);
    keep_digest(row, vectors[il]);
    return ggml_reshape_2d(ctx, row, head_size, n / head_size);
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
        ggml_backend_tensor_set(tensor, values->data(), 0, ggml_nbytes(tensor));
    }
    return buffer;
}

}  // namespace

void kvtuner_centers::init(const kvtuner_plan & plan, const llama_hparams & hparams, const std::vector<layer> & layers,
                           bool no_alloc) {
    std::map<ggml_backend_buffer_type_t, std::vector<layer>> by_buft;
    for (const layer & l : layers) {
        by_buft[ggml_backend_buffer_get_type(l.k->buffer)].push_back(l);
    }
    for (const auto & [buft, group] : by_buft) {
        ggml_context_ptr ctx(ggml_init({ 4 * group.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        std::vector<planned_tensor> planned;
        for (const layer & l : group) {
            by_storage[l.k] = {
                make_tensor(ctx.get(), plan.center_k, l.il, hparams.n_embd_head_k(l.il), "k", planned),
                make_tensor(ctx.get(), plan.center_v, l.il, hparams.n_embd_head_v(l.il), "v", planned),
            };
        }
        if (!planned.empty()) {
            ggml_backend_buffer_ptr buffer(no_alloc ? dummy_buffer(buft, ctx.get())
                                                    : filled_buffer(buft, ctx.get(), planned));
            ctxs_bufs.emplace_back(std::move(ctx), std::move(buffer));
        }
    }
}

ggml_tensor * kvtuner_centers::k(const ggml_tensor * k_storage) const {
    const auto it = by_storage.find(k_storage);
    return it == by_storage.end() ? nullptr : it->second.k;
}

ggml_tensor * kvtuner_centers::v(const ggml_tensor * k_storage) const {
    const auto it = by_storage.find(k_storage);
    return it == by_storage.end() ? nullptr : it->second.v;
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
    return x && center ? ggml_sub(ctx, x, center) : x;
}

ggml_tensor * kvtuner_uncenter(ggml_context * ctx, ggml_tensor * x, ggml_tensor * center) {
    return center ? ggml_add(ctx, x, center) : x;
}

ggml_tensor * kvtuner_uncenter_output(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * center) {
    if (!center) {
        return cur;
    }
    const int64_t n_head = cur->ne[0] / center->ne[0];
    const int64_t n_head_kv = center->ne[1];
    ggml_tensor * heads = ggml_reshape_4d(ctx, cur, center->ne[0], n_head / n_head_kv, n_head_kv, cur->ne[1]);
    heads = ggml_add(ctx, heads, ggml_reshape_3d(ctx, center, center->ne[0], 1, n_head_kv));
    return ggml_reshape_2d(ctx, heads, cur->ne[0], cur->ne[1]);
}
