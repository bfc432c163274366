#include "kvtuner-center.h"

#include "kvtuner-plan.h"

#include "ggml-alloc.h"
#include "llama-hparams.h"

#include <stdexcept>
#include <string>

namespace {

using planned_tensor = std::pair<ggml_tensor *, const std::vector<float> *>;

ggml_tensor * make_tensor(ggml_context * ctx, const std::vector<std::vector<float>> & vectors, uint32_t il,
                          int64_t head_size, const char * name, std::vector<planned_tensor> & planned) {
    if (il >= vectors.size() || vectors[il].empty()) {
        return nullptr;
    }
    ggml_tensor * tensor = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, head_size, (int64_t)vectors[il].size() / head_size);
    ggml_format_name(tensor, "center_%s_l%u", name, il);
    planned.emplace_back(tensor, &vectors[il]);
    return tensor;
}

// a buffer without memory keeps the scheduler from allocating what only stands for its size
ggml_backend_buffer_t dummy_buffer(ggml_backend_buffer_type_t buft, const std::vector<planned_tensor> & planned) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buft, 0);
    for (const auto & [tensor, values] : planned) {
        tensor->buffer = buffer;
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
        ggml_context_ptr ctx(ggml_init({ 2 * group.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        std::vector<planned_tensor> planned;
        for (const layer & l : group) {
            by_storage[l.k] = {
                make_tensor(ctx.get(), plan.center_k, l.il, hparams.n_embd_head_k(l.il), "k", planned),
                make_tensor(ctx.get(), plan.center_v, l.il, hparams.n_embd_head_v(l.il), "v", planned),
            };
        }
        if (!planned.empty()) {
            ggml_backend_buffer_ptr buffer(no_alloc ? dummy_buffer(buft, planned)
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
