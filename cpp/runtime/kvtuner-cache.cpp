#include "kvtuner-cache.h"

#include "kvtuner-check.h"
#include "kvtuner-mark.h"
#include "kvtuner-model.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <string>

ggml_tensor * kvtuner_cache::v_storage(const llama_kv_cache & cache, uint32_t il) {
    return cache.layers[cache.map_layer_ids.at((int32_t)il)].v;
}

bool kvtuner_cache::any_quantized_k(const llama_kv_cache & cache) {
    const auto is_quantized = [](const auto & layer) { return ggml_is_quantized(layer.k->type); };
    return std::any_of(cache.layers.begin(), cache.layers.end(), is_quantized);
}

bool kvtuner_cache::any_quantized_v(const llama_kv_cache & cache) {
    const auto is_quantized = [](const auto & layer) { return layer.v && ggml_is_quantized(layer.v->type); };
    return std::any_of(cache.layers.begin(), cache.layers.end(), is_quantized);
}

bool kvtuner_cache::is_rotated_k(const llama_kv_cache & cache) {
    // attention over compressed keys stores them as they are; index keys have hyperparameters of their own
    const bool is_compressed = cache.hparams.is_mla() && &cache.hparams == &cache.model.hparams;
    return cache.n_rot_k && !is_compressed && (cache.plan || is_rotated_upstream(cache));
}

bool kvtuner_cache::is_rotated_v(const llama_kv_cache & cache) {
    return cache.n_rot_v && (cache.plan || is_rotated_upstream(cache));
}

bool kvtuner_cache::is_rotated_upstream(const llama_kv_cache & cache) {
    // upstream's graph of hybrid models with a sliding window leaves it out; deepseek4 counts as hybrid, but is none
    const bool is_hybrid = llm_arch_is_hybrid(cache.model.arch) && cache.model.arch != LLM_ARCH_DEEPSEEK4;
    return !is_hybrid || cache.model.hparams.swa_type == LLAMA_SWA_TYPE_NONE;
}

template <typename T>
static bool is_quantized(const T & layer) {
    return layer.v && (ggml_is_quantized(layer.k->type) || ggml_is_quantized(layer.v->type));
}

void kvtuner_cache::init(llama_kv_cache & cache) {
    if (!cache.plan || cache.other) {
        return;
    }
    for (const auto & layer : cache.layers) {
        kvtuner_mark(layer.k);
    }
    init_rotation(cache);
    init_centers(cache);
    init_exact(cache);
    warn_without(cache);
}

// where all layers of a cache are; null where not all are in one place, or are split among several devices
static ggml_backend_buffer_type_t place_of(const std::vector<const ggml_tensor *> & keys) {
    const auto type_of = [](const ggml_tensor * k) { return ggml_backend_buffer_get_type(k->buffer); };
    const ggml_backend_buffer_type_t first = keys.empty() ? nullptr : type_of(keys[0]);
    const ggml_backend_dev_t device = first ? ggml_backend_buft_get_device(first) : nullptr;
    const bool is_split = device && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_META;
    const auto is_elsewhere = [=](const ggml_tensor * k) { return type_of(k) != first; };
    return is_split || std::any_of(keys.begin(), keys.end(), is_elsewhere) ? nullptr : first;
}

void kvtuner_cache::init_rotation(llama_kv_cache & cache) {
    std::vector<const ggml_tensor *> keys;
    for (const auto & layer : cache.layers) {
        keys.push_back(layer.k);
    }
    std::map<int64_t, std::vector<float>> matrices;
    for (const int64_t n : { cache.n_rot_k, cache.n_rot_v }) {
        if (n > 0) {
            matrices[n] = cache.attn_rot_hadamard.at(n);
        }
    }
    const ggml_backend_buffer_type_t place = place_of(keys);
    if (place && !matrices.empty()) {
        cache.rotation.init(place, matrices, cache.hparams.no_alloc);
    }
}

ggml_tensor * kvtuner_cache::kept_rotation(const llama_kv_cache & cache, int64_t n) {
    return cache.rotation.of(n);
}

// "exact ends, scales, centers by blocks": what the plan wants beside a cache; empty where nothing
static std::string wanted_beside(const kvtuner_plan & plan, bool has_ends) {
    const bool has_scales =
            std::any_of(plan.scale_k.begin(), plan.scale_k.end(), [](const auto & scale) { return !scale.empty(); });
    const std::string ends = !has_ends ? "" : has_scales ? "exact ends, scales" : "exact ends";
    return plan.center_span == 0 ? ends : ends + (has_ends ? ", " : "") + "centers by blocks";
}

static const char * obstacle_beside(const llama_model & model, bool has_flash_attn) {
    return !has_flash_attn                 ? "FlashAttention is off"
           : kvtuner_can_read_exact(model) ? "their device does not read them"
                                           : "the attention of this architecture does not read them";
}

// what the plan wants beside the cache, and some layers go without
void kvtuner_cache::warn_without(const llama_kv_cache & cache) {
    const std::string wanted =
            wanted_beside(*cache.plan, cache.plan->ends.n_positions() > 0 && cache.swa_type == LLAMA_SWA_TYPE_NONE);
    const auto goes_without = [&](const auto & layer) {
        return is_quantized(layer) && !can_read_beside(cache, layer.k);
    };
    const auto & layers = cache.layers;
    const size_t n_without = std::count_if(layers.begin(), layers.end(), goes_without);
    if (!wanted.empty() && n_without > 0) {
        LLAMA_LOG_WARN(
                "kvtuner: %zu of %zu quantized layers run without the plan's %s: %s\n", n_without,
                (size_t)std::count_if(layers.begin(), layers.end(), [](const auto & l) { return is_quantized(l); }),
                wanted.c_str(), obstacle_beside(cache.model, !cache.v_trans));
    }
}

// layers that see all positions, and quantize
void kvtuner_cache::init_exact(llama_kv_cache & cache) {
    const kvtuner_ends & ends = cache.plan->ends;
    if (ends.n_positions() == 0 || cache.swa_type != LLAMA_SWA_TYPE_NONE || cache.v_trans) {
        return;
    }
    std::vector<kvtuner_exact_rows::layer> layers;
    for (const auto & layer : cache.layers) {
        if (is_quantized(layer) && can_read_beside(cache, layer.k)) {
            layers.push_back({ layer.il, layer.k, layer.v });
        }
    }
    const uint32_t n_rows = cache.n_seq_max * ends.n_positions() +
                            std::min(kvtuner_cparams().n_ubatch, cache.get_size() * cache.n_stream);
    cache.exact.init(ends, layers, cache.n_stream, cache.get_size(), n_rows, cache.hparams.no_alloc, cache.ctxs_bufs);
}

const llama_kv_cache & kvtuner_cache::of(const llama_kv_cache_context & context) {
    return *context.kv;
}

std::vector<kvtuner_exact_rows::cell> kvtuner_cache::cells_of(const llama_kv_cache_context & context) {
    std::vector<kvtuner_exact_rows::cell> cells;
    const llama_kv_cache::slot_info & slots = context.sinfos[context.i_cur];
    for (size_t s = 0; s < slots.n_stream(); ++s) {
        for (uint32_t index : slots.idxs[s]) {
            cells.push_back({ (uint32_t)slots.strm[s], index });
        }
    }
    return cells;
}

kvtuner_exact_rows & kvtuner_cache::exact(const llama_kv_cache_context & context) {
    return context.kv->exact;
}

const kvtuner_exact_rows & kvtuner_cache::exact(const llama_kv_cache & cache) {
    return cache.exact;
}

std::string kvtuner_cache::ends_text(const llama_kv_cache & cache) {
    if (!cache.exact.is_used()) {
        return "";
    }
    const kvtuner_ends & ends = cache.exact.ends_of();
    return " ends " + std::to_string(ends.first) + "+" + std::to_string(ends.last) + ":" + ggml_type_name(ends.type);
}

// of each sequence, the position that is read next
std::vector<int32_t> kvtuner_cache::next_positions(const llama_kv_cache & cache) {
    std::vector<int32_t> next(cache.n_seq_max);
    for (uint32_t seq = 0; seq < cache.n_seq_max; ++seq) {
        next[seq] = cache.seq_pos_max((llama_seq_id)seq) + 1;
    }
    return next;
}

void kvtuner_cache::copy_beside(llama_kv_cache & cache, uint32_t from, uint32_t to) {
    if (cache.centers.blocks.is_used()) {
        cache.centers.blocks.of_stream(to) = cache.centers.blocks.of_stream(from);
    }
    if (cache.exact.is_used()) {
        cache.exact.copy_stream(from, to, cache.v_cells, next_positions(cache));
    }
}

void kvtuner_cache::copy_exact_rows(llama_kv_cache & cache) {
    cache.exact.copy_rows();
}

void kvtuner_cache::shift_exact(llama_kv_cache & cache, llama_context & ctx, llm_graph_result & graph,
                                ggml_tensor * rotation, uint32_t il) {
    if (!cache.exact.has(il)) {
        return;
    }
    const llama_hparams & hparams = cache.hparams;
    const llama_cparams & cparams = ctx.get_cparams();
    ggml_tensor * all = cache.exact.of(il).k;
    const bool is_whole = shifts_whole_heads(cache, il, all->type);
    const uint32_t n_head = hparams.n_head_kv(il), size = hparams.n_embd_head_k(il);
    ggml_tensor * k = ggml_view_3d(graph.get_ctx(), all, is_whole ? size : hparams.n_rot(il), n_head, all->ne[1],
                                   ggml_row_size(all->type, size), all->nb[1], 0);
    const auto & layers = cache.exact.layers();
    const auto is_turned = [&](const auto & layer) { return hparams.has_rope(layer.first); };
    if (std::find_if(layers.begin(), layers.end(), is_turned)->first == il) {
        build_blocks(cache, graph.get_ctx(), cache.exact.build_shift(graph.get_ctx()));
    }
    ggml_tensor * shifted = cache.build_rope_shift(
            cparams, graph.get_ctx(), k, cache.exact.shift_input(), rotation, cache.model.get_rope_factors(cparams, il),
            cache.model.get_rope_freq_base(cparams, il), cache.model.get_rope_freq_scale(cparams, il), il);
    ggml_build_forward_expand(graph.get_gf(), shifted);
}

void kvtuner_cache::place(const llama_kv_cache_context & context) {
    llama_kv_cache & cache = *context.kv;
    place_blocks(context);
    if (!cache.exact.is_used()) {
        return;
    }
    const llama_ubatch & ubatch = context.ubatches[context.i_cur];
    std::vector<int32_t> next = next_positions(cache);
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) {
            int32_t & oldest = next[ubatch.seq_id[i][s]];
            oldest = std::min(oldest, ubatch.pos[i]);
        }
    }
    cache.exact.place(cells_of(context), cache.v_cells, next);
}

uint32_t kvtuner_cache::stored_layer(const llama_kv_cache & cache, uint32_t il) {
    return cache.layers[cache.map_layer_ids.at((int32_t)il)].il;
}

ggml_tensor * kvtuner_cache::shifted_rotation(const llama_kv_cache & cache, ggml_tensor * rotation) {
    // without a plan a context shift turns back whatever upstream's does
    return is_rotated_k(cache) || (!cache.plan && !is_rotated_upstream(cache)) ? rotation : nullptr;
}

bool kvtuner_cache::shifts_whole_heads(const llama_kv_cache & cache, uint32_t il, ggml_type type) {
    return ggml_is_quantized(type) || type == GGML_TYPE_BF16 || (cache.plan && is_rotated_k(cache)) ||
           center(cache, il);
}

void kvtuner_cache::build_rotation(ggml_context * ctx, const llama_kv_cache_iswa_context & context,
                                   llm_graph_input_attn_kv_iswa & input) {
    if (context.get_base()->kv->plan) {
        input.self_k_rot = context.get_base()->build_input_k_rot(ctx);
        input.self_v_rot = context.get_base()->build_input_v_rot(ctx);
        input.self_k_rot_swa = context.get_swa()->build_input_k_rot(ctx);
        input.self_v_rot_swa = context.get_swa()->build_input_v_rot(ctx);
    }
}
