// Centers of a cache in graphs, and the blocks of its cells as graphs need them.

#include "kvtuner-cache.h"

#include "llama-kv-cache.h"

#include <algorithm>

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
