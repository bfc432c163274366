#include "kvtuner-center.h"

#include "kvtuner-kept.h"

#include <cmath>
#include <string>

namespace {

// FNV-1a
uint32_t digest_of(const std::vector<float> & values) {
    const uint8_t * bytes = (const uint8_t *)values.data();
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < values.size() * sizeof(float); ++i) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    return hash;
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

std::vector<float> scaled(std::vector<float> values, const std::vector<float> & scale) {
    for (size_t i = 0; i < scale.size(); ++i) {
        values[i] *= scale[i];
    }
    return values;
}

std::vector<uint8_t> table_of(const std::vector<std::vector<float>> & blocks, const std::vector<float> & scale,
                              size_t n_rot) {
    std::vector<uint8_t> table;
    for (const std::vector<float> & block : blocks) {
        const std::vector<float> values = rotated(scaled(block, scale), n_rot);
        std::vector<ggml_fp16_t> row(values.size());
        ggml_fp32_to_fp16_row(values.data(), row.data(), (int64_t)row.size());
        table.insert(table.end(), (const uint8_t *)row.data(), (const uint8_t *)(row.data() + row.size()));
    }
    return table;
}

// a name like those of the cache, so that devices that split its heads split these alike
ggml_tensor * make_tensor(ggml_context * ctx, ggml_type type, size_t n, size_t n_row, const char * what, uint32_t il) {
    ggml_tensor * tensor = ggml_new_tensor_2d(ctx, type, (int64_t)n, (int64_t)n_row);
    ggml_format_name(tensor, "cache_k_%s_l%u", what, il);
    return tensor;
}

// the f32 values of all heads, as [head size, KV heads]
ggml_tensor * make_heads(ggml_context * ctx, const std::vector<float> & values, const kvtuner_centers::layer & layer,
                         const char * what, std::vector<kvtuner_kept_tensor> & planned) {
    const size_t n = values.size();
    planned.emplace_back(make_tensor(ctx, GGML_TYPE_F32, n, 1, what, layer.il), kvtuner_bytes_of(values));
    return ggml_reshape_2d(ctx, planned.back().first, layer.head_size, (int64_t)n / layer.head_size);
}

kvtuner_center make_center(ggml_context * ctx, const kvtuner_centers::layer & layer, uint32_t n_rot,
                           std::vector<kvtuner_kept_tensor> & planned) {
    const uint32_t digest = digest_of(layer.center);
    if (layer.blocks.empty()) {
        const std::vector<float> values = rotated(scaled(layer.center, layer.scale), n_rot);
        return { make_heads(ctx, values, layer, "center", planned), nullptr, digest };
    }
    ggml_tensor * table = make_tensor(ctx, GGML_TYPE_F16, layer.center.size(), layer.blocks.size(), "center", layer.il);
    planned.emplace_back(table, table_of(layer.blocks, layer.scale, n_rot));
    return { nullptr, table, digest };
}

}  // namespace

void kvtuner_centers::init(const std::vector<layer> & layers, uint32_t n_rot, bool no_alloc) {
    std::map<ggml_backend_buffer_type_t, std::vector<const layer *>> by_buft;
    for (const layer & l : layers) {
        by_buft[ggml_backend_buffer_get_type(l.k->buffer)].push_back(&l);
    }
    for (const auto & [buft, group] : by_buft) {
        ggml_context_ptr ctx(ggml_init({ 4 * group.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        std::vector<kvtuner_kept_tensor> planned;
        for (const layer * l : group) {
            if (!l->center.empty()) {
                by_storage[l->k] = make_center(ctx.get(), *l, n_rot, planned);
            }
            if (!l->scale.empty()) {
                scales[l->k] = { make_heads(ctx.get(), l->scale, *l, "scale", planned), digest_of(l->scale) };
            }
        }
        ggml_backend_buffer_ptr buffer(
                kvtuner_keep(buft, ctx.get(), planned, no_alloc, "the centers and scales of the KV cache"));
        ctxs_bufs.emplace_back(std::move(ctx), std::move(buffer));
    }
}

const kvtuner_center * kvtuner_centers::of(const ggml_tensor * k_storage) const {
    const auto it = by_storage.find(k_storage);
    return it == by_storage.end() ? nullptr : &it->second;
}

const kvtuner_key_scale * kvtuner_centers::scale_of(const ggml_tensor * k_storage) const {
    const auto it = scales.find(k_storage);
    return it == scales.end() ? nullptr : &it->second;
}

ggml_tensor * kvtuner_center_rows(ggml_context * ctx, const kvtuner_center * center, const ggml_tensor * x,
                                  ggml_tensor * blocks) {
    if (!center) {
        return nullptr;
    }
    return center->single
                   ? center->single
                   : ggml_reshape_3d(ctx, ggml_get_rows(ctx, center->table, blocks), x->ne[0], x->ne[1], x->ne[2]);
}

// RoPE of what a product or its bias makes. (That of normed values is one step with the norm on some back ends.)
static bool is_rope_of_product(const ggml_tensor * tensor) {
    if (tensor->op != GGML_OP_ROPE) {
        return false;
    }
    const ggml_tensor * source = tensor->src[0];
    while (source->op == GGML_OP_RESHAPE || source->op == GGML_OP_VIEW) {
        source = source->src[0];
    }
    return source->op == GGML_OP_MUL_MAT || source->op == GGML_OP_ADD;
}

void kvtuner_build_first(ggml_cgraph * graph, std::initializer_list<ggml_tensor *> tensors) {
    for (ggml_tensor * tensor : tensors) {
        if (tensor) {
            ggml_build_forward_expand(graph, is_rope_of_product(tensor) ? tensor->src[0] : tensor);
        }
    }
    for (ggml_tensor * tensor : tensors) {
        if (tensor) {
            ggml_build_forward_expand(graph, tensor);
        }
    }
}
