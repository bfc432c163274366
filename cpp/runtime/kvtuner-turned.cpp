// The vectors of a cache's layers, made once: centers, turned by RoPE for every block of positions, and scales.

#include "kvtuner-backend.h"
#include "kvtuner-cache.h"
#include "kvtuner-check.h"
#include "kvtuner-model.h"

#include "ggml-backend.h"
#include "llama-cparams.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <cmath>
#include <stdexcept>

namespace {

using vectors = std::vector<std::vector<float>>;

ggml_tensor * host_copy(ggml_context * ctx, const ggml_tensor * tensor) {
    return tensor ? ggml_dup_tensor(ctx, tensor) : nullptr;
}

void copy_values(ggml_tensor * to, const ggml_tensor * from) {
    if (to) {
        std::vector<uint8_t> bytes(ggml_nbytes(from));
        ggml_backend_tensor_get(from, bytes.data(), 0, bytes.size());
        ggml_backend_tensor_set(to, bytes.data(), 0, bytes.size());
    }
}

// of one thread: to wake others takes longer than what they would do
ggml_backend_ptr cpu_backend() {
    ggml_backend_ptr backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend.get()));
    const auto set_n_threads =
            (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    set_n_threads(backend.get(), 1);
    return backend;
}

// RoPE without the factor that some scalings give attention: keys have it already
llama_cparams pure_turn(llama_cparams cparams, float freq_scale) {
    cparams.yarn_attn_factor = cparams.yarn_ext_factor != 0 ? 1 / (1 + 0.1f * std::log(1 / freq_scale)) : 1;
    return cparams;
}

// Computes `result`, of which `values` [head size, KV heads, blocks] and `positions` are inputs, and leaves it in
// `values`.
vectors compute_blocks(ggml_context * ctx, ggml_tensor * result, const std::vector<float> & center, uint32_t span,
                       ggml_tensor * values, ggml_tensor * positions, ggml_tensor * factors,
                       const ggml_tensor * model_factors) {
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    const ggml_backend_ptr backend = cpu_backend();
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx, backend.get()));
    if (!buffer) {
        throw std::runtime_error("failed to allocate the centers of the KV cache");
    }
    copy_values(factors, model_factors);
    const size_t n_bytes = center.size() * sizeof(float);
    vectors blocks(positions->ne[0], center);
    for (size_t b = 0; b < blocks.size(); ++b) {
        const int32_t position = (int32_t)(b * span);
        ggml_backend_tensor_set(positions, &position, b * sizeof(position), sizeof(position));
        ggml_backend_tensor_set(values, center.data(), b * n_bytes, n_bytes);
    }
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("failed to compute the centers of the KV cache");
    }
    for (size_t b = 0; b < blocks.size(); ++b) {
        ggml_backend_tensor_get(values, blocks[b].data(), b * n_bytes, n_bytes);
    }
    return blocks;
}

// that of layer il, or none
std::vector<float> vector_of(const vectors & of_layers, uint32_t il) {
    return il < of_layers.size() ? of_layers[il] : std::vector<float>();
}

std::vector<float> mean_of(const vectors & blocks) {
    std::vector<float> mean(blocks[0].size());
    for (size_t i = 0; i < mean.size(); ++i) {
        double sum = 0;
        for (const std::vector<float> & block : blocks) {
            sum += block[i];
        }
        mean[i] = (float)(sum / (double)blocks.size());
    }
    return mean;
}

}  // namespace

bool kvtuner_cache::can_read_beside(const llama_kv_cache & cache, const ggml_tensor * k) {
    ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(k->buffer);
    return !cache.v_trans && kvtuner_can_read_exact(cache.model) &&
           (ggml_backend_buffer_is_host(k->buffer) || kvtuner_reads_beside(ggml_backend_buft_get_device(type)));
}

// Scales of a plan with ends are for what is not read exactly: where nothing is, they would cost more than they give.
bool kvtuner_cache::is_scaled_k(const llama_kv_cache & cache, uint32_t il, const ggml_tensor * k) {
    return cache.plan->has_scale_k(il) && (cache.plan->ends.n_positions() == 0 || can_read_beside(cache, k));
}

// the plan's center of layer il as RoPE turns it by the first position of each of n blocks
vectors kvtuner_cache::turned(const llama_kv_cache & cache, uint32_t il, uint32_t n) {
    const std::vector<float> & center = cache.plan->center_k[il];
    if (cache.hparams.no_alloc) {  // the model has no values either
        return vectors(n, center);
    }
    const llama_cparams & cparams = kvtuner_cparams();
    const float freq_scale = cache.model.get_rope_freq_scale(cparams, il);
    const int64_t size = cache.hparams.n_embd_head_k(il);
    const ggml_context_ptr ctx(
            ggml_init({ 16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/true }));
    ggml_tensor * values = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, size, (int64_t)center.size() / size, n);
    ggml_tensor * positions = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n);
    const ggml_tensor * model_factors = cache.model.get_rope_factors(cparams, il);
    ggml_tensor * factors = host_copy(ctx.get(), model_factors);
    ggml_tensor * result = cache.build_rope_shift(pure_turn(cparams, freq_scale), ctx.get(), values, positions, nullptr,
                                                  factors, cache.model.get_rope_freq_base(cparams, il), freq_scale, il);
    return compute_blocks(ctx.get(), result, center, cache.plan->center_span, values, positions, factors,
                          model_factors);
}

void kvtuner_cache::init_centers(llama_kv_cache & cache) {
    const kvtuner_plan & plan = *cache.plan;
    const uint32_t span = plan.center_span, n_block = span ? (kvtuner_cparams().n_ctx_seq + span - 1) / span : 0;
    std::vector<kvtuner_centers::layer> layers;
    bool has_blocks = false;
    for (const auto & layer : cache.layers) {
        const bool is_scaled = is_scaled_k(cache, layer.il, layer.k);
        if (!plan.has_center_k(layer.il) && !is_scaled) {
            continue;
        }
        layers.push_back({ layer.il,
                           layer.k,
                           cache.hparams.n_embd_head_k(layer.il),
                           vector_of(plan.center_k, layer.il),
                           {},
                           is_scaled ? plan.scale_k[layer.il] : std::vector<float>() });
        kvtuner_centers::layer & added = layers.back();
        if (!kvtuner_has_turned_center(plan, cache.hparams, layer.il)) {
            continue;
        }
        vectors blocks = turned(cache, layer.il, n_block);
        if (can_read_beside(cache, layer.k)) {
            added.blocks = std::move(blocks);
            has_blocks = true;
        } else {
            added.center = mean_of(blocks);
        }
    }
    cache.centers.init(layers, is_rotated_k(cache) ? cache.n_rot_k : 0, cache.hparams.no_alloc);
    if (has_blocks) {
        cache.centers.blocks.init(span, n_block, cache.n_stream, cache.get_size());
    }
}
