// Centers of a cache: the vectors of each layer, made once, and the blocks of its cells as graphs need them.

#include "kvtuner-cache.h"
#include "kvtuner-check.h"
#include "kvtuner-model.h"

#include "ggml-backend.h"
#include "llama-cparams.h"
#include "llama-io.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
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
    return !cache.v_trans && kvtuner_can_read_exact(cache.model) && ggml_backend_buffer_is_host(k->buffer);
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
    const bool has_span = plan.center_span && cache.hparams.rope_type != LLAMA_ROPE_TYPE_NONE;
    const uint32_t n_block = has_span ? (kvtuner_cparams().n_ctx_seq + plan.center_span - 1) / plan.center_span : 0;
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
        if (n_block == 0 || added.center.empty() || !cache.hparams.has_rope(layer.il)) {
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
        cache.centers.blocks.init(plan.center_span, n_block, cache.n_stream, cache.get_size());
    }
}

const kvtuner_centers & kvtuner_cache::centers(const llama_kv_cache & cache) {
    return cache.other ? cache.other->centers : cache.centers;
}

const kvtuner_center * kvtuner_cache::center(const llama_kv_cache & cache, uint32_t il) {
    return centers(cache).of(cache.get_k_storage((int32_t)il));
}

const kvtuner_key_scale * kvtuner_cache::key_scale(const llama_kv_cache & cache, uint32_t il) {
    return centers(cache).scale_of(cache.get_k_storage((int32_t)il));
}

ggml_tensor * kvtuner_cache::scale(const llama_kv_cache & cache, uint32_t il) {
    const kvtuner_key_scale * found = key_scale(cache, il);
    return found ? found->factors : nullptr;
}

ggml_tensor * kvtuner_cache::less_center(const llama_kv_cache & cache, ggml_context * ctx, ggml_tensor * x,
                                         const ggml_tensor * key, uint32_t il) {
    ggml_tensor * rows = kvtuner_center_rows(ctx, center(cache, il), x, centers(cache).blocks.inputs_of(key).after);
    return rows ? ggml_sub(ctx, x, rows) : x;
}

ggml_tensor * kvtuner_cache::with_center(const llama_kv_cache & cache, ggml_context * ctx, ggml_tensor * x,
                                         const ggml_tensor * key, uint32_t il) {
    ggml_tensor * rows = kvtuner_center_rows(ctx, center(cache, il), x, centers(cache).blocks.inputs_of(key).before);
    return rows ? ggml_add(ctx, x, rows) : x;
}

ggml_tensor * kvtuner_cache::build_blocks(const llama_kv_cache & cache, ggml_context * ctx, ggml_tensor * key) {
    if (centers(cache).blocks.is_used()) {
        centers(cache).blocks.build(ctx, key);
    }
    return key;
}

void kvtuner_cache::set_blocks(const llama_kv_cache_context & context, const ggml_tensor * k_idxs) {
    kvtuner_center_blocks & blocks = centers(of(context)).blocks;
    if (!blocks.is_used() || !blocks.inputs_of(k_idxs).after->buffer) {
        return;
    }
    int32_t * after = (int32_t *)blocks.inputs_of(k_idxs).after->data;
    for (const kvtuner_exact_rows::cell & cell : cells_of(context)) {
        *after++ = blocks.of_stream(cell.stream)[cell.index];
    }
}

void kvtuner_cache::copy_blocks(const llama_kv_cache_context & context, int64_t n_cell, int32_t * to) {
    for (auto stream : context.sinfos[context.i_cur].strm) {
        to = std::copy_n(centers(of(context)).blocks.of_stream((uint32_t)stream).begin(), n_cell, to);
    }
}

// the cells of the context's ubatch hold its tokens now
void kvtuner_cache::place_blocks(const llama_kv_cache_context & context) {
    kvtuner_center_blocks & blocks = centers(of(context)).blocks;
    const llama_pos * position = context.ubatches[context.i_cur].pos;
    if (!blocks.is_used()) {
        return;
    }
    for (const kvtuner_exact_rows::cell & cell : cells_of(context)) {
        blocks.of_stream(cell.stream)[cell.index] = blocks.at(*position++);
    }
}

void kvtuner_cache::set_shift(llama_kv_cache & cache, const ggml_tensor * k_shift) {
    if (cache.centers.blocks.is_used()) {
        set_shifted_rows(cache);
        set_shifted_cells(cache, k_shift);
    }
    cache.exact.set_shift(cache.v_cells);
}

// the blocks of exact rows are those of their cells
void kvtuner_cache::set_shifted_rows(const llama_kv_cache & cache) {
    kvtuner_center_blocks & blocks = cache.centers.blocks;
    const kvtuner_center_blocks::inputs inputs = blocks.inputs_of(cache.exact.shift_input());
    if (!inputs.before || !inputs.before->buffer) {
        return;
    }
    int32_t *before = (int32_t *)inputs.before->data, *after = (int32_t *)inputs.after->data;
    for (uint32_t row = 0; row < cache.exact.n_rows(); ++row) {
        const kvtuner_exact_rows::cell * of = cache.exact.owner(row, cache.v_cells);
        before[row] = of ? blocks.of_stream(of->stream)[of->index] : 0;
        after[row] = of ? blocks.at(cache.v_cells[of->stream].pos_get(of->index)) : 0;
    }
}

// from now on cells have other blocks
void kvtuner_cache::set_shifted_cells(const llama_kv_cache & cache, const ggml_tensor * k_shift) {
    kvtuner_center_blocks & blocks = cache.centers.blocks;
    int32_t * before = (int32_t *)blocks.inputs_of(k_shift).before->data;
    int32_t * after = (int32_t *)blocks.inputs_of(k_shift).after->data;
    for (uint32_t s = 0; s < cache.n_stream; ++s) {
        for (uint32_t i = 0; i < cache.get_size(); ++i) {
            int32_t & block = blocks.of_stream(s)[i];
            *before++ = block;
            block = cache.v_cells[s].is_empty(i) ? block : blocks.at(cache.v_cells[s].pos_get(i));
            *after++ = block;
        }
    }
}

void kvtuner_cache::write_blocks(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                                 const std::vector<std::pair<uint32_t, uint32_t>> & ranges) {
    kvtuner_center_blocks & blocks = cache.centers.blocks;
    if (!blocks.is_used()) {
        return;
    }
    for (const auto & [begin, end] : ranges) {
        io.write(blocks.of_stream(stream).data() + begin, (end - begin) * sizeof(int32_t));
    }
}

void kvtuner_cache::read_blocks(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                                const std::vector<uint32_t> & cells) {
    kvtuner_center_blocks & blocks = cache.centers.blocks;
    if (!blocks.is_used()) {
        return;
    }
    std::vector<int32_t> read(cells.size());
    io.read(read.data(), read.size() * sizeof(int32_t));
    for (size_t i = 0; i < read.size(); ++i) {
        if (read[i] < 0 || read[i] >= (int32_t)blocks.n_blocks()) {
            throw std::runtime_error("the state has a key of block " + std::to_string(read[i]) + ", the context " +
                                     std::to_string(blocks.n_blocks()) + " blocks: use a context that is as long");
        }
        blocks.of_stream(stream)[cells[i]] = read[i];
    }
}
