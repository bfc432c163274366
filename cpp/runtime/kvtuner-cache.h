// What our patches and our code ask of upstream's KV cache beyond its own methods: a friend of its classes.
#pragma once

#include "kvtuner-center.h"
#include "kvtuner-exact.h"
#include "kvtuner-kept.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

class llama_kv_cache;
class llama_kv_cache_context;
class llama_kv_cache_iswa_context;
class llama_io_read_i;
class llama_io_write_i;
class llm_graph_result;
struct llama_context;
class llm_graph_input_attn_kv_iswa;
struct ggml_context;
struct ggml_tensor;

struct kvtuner_cache {
    // null where V is a view of K
    static ggml_tensor * v_storage(const llama_kv_cache & cache, uint32_t il);

    // whether a layer has a quantized type: the cache rotates all then
    static bool any_quantized_k(const llama_kv_cache & cache);
    static bool any_quantized_v(const llama_kv_cache & cache);

    // whether keys, or values, lie in the cache rotated
    static bool is_rotated_k(const llama_kv_cache & cache);
    static bool is_rotated_v(const llama_kv_cache & cache);

    // whether the graphs of this model rotate without a plan, too
    static bool is_rotated_upstream(const llama_kv_cache & cache);

    // once the tensors and the rotation are there
    static void init(llama_kv_cache & cache);
    static void init_rotation(llama_kv_cache & cache);
    static void init_centers(llama_kv_cache & cache);
    static void init_exact(llama_kv_cache & cache);
    static void warn_without(const llama_kv_cache & cache);
    static std::vector<std::vector<float>> turned(const llama_kv_cache & cache, uint32_t il, uint32_t n_block);

    // whether attention over these keys reads what lies beside the cache: exact rows, and centers of several blocks
    static bool can_read_beside(const llama_kv_cache & cache, const ggml_tensor * k);
    // whether the keys of a layer are scaled, as the plan has it
    static bool is_scaled_k(const llama_kv_cache & cache, uint32_t il, const ggml_tensor * k);

    static std::vector<int32_t> next_positions(const llama_kv_cache & cache);

    // the cache of a context, and the cells of its ubatch's tokens
    static const llama_kv_cache & of(const llama_kv_cache_context & context);
    static std::vector<kvtuner_exact_rows::cell> cells_of(const llama_kv_cache_context & context);

    // puts the blocks of the first n_cell cells of each of the context's streams there
    static void copy_blocks(const llama_kv_cache_context & context, int64_t n_cell, int32_t * to);

    // the rows of exact ends; not used where there are none
    static kvtuner_exact_rows & exact(const llama_kv_cache_context & context);
    static const kvtuner_exact_rows & exact(const llama_kv_cache & cache);

    // once the tokens of the context's ubatch have cells: rows and blocks for them
    static void place_blocks(const llama_kv_cache_context & context);
    static void place(const llama_kv_cache_context & context);

    // " ends 4+32:f16", or nothing where there are none
    static std::string ends_text(const llama_kv_cache & cache);

    // cells of a stream are copied to another one
    static void copy_beside(llama_kv_cache & cache, uint32_t from, uint32_t to);
    static void copy_exact_rows(llama_kv_cache & cache);

    // the exact rows in a context shift of layer il
    static void shift_exact(llama_kv_cache & cache, llama_context & ctx, llm_graph_result & graph,
                            ggml_tensor * rotation, uint32_t il);
    static void set_shift(llama_kv_cache & cache, const ggml_tensor * k_shift);
    static void set_shifted_rows(const llama_kv_cache & cache);
    static void set_shifted_cells(const llama_kv_cache & cache, const ggml_tensor * k_shift);

    // what lies beside the cache in a saved state, after the cells of a stream
    static void write_beside(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                             const std::vector<std::pair<uint32_t, uint32_t>> & ranges);
    static void read_beside(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                            const std::vector<uint32_t> & cells);
    static void write_blocks(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                             const std::vector<std::pair<uint32_t, uint32_t>> & ranges);
    static void read_blocks(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                            const std::vector<uint32_t> & cells);
    static void write_exact(const llama_kv_cache & cache, llama_io_write_i & io, uint32_t stream,
                            const std::vector<std::pair<uint32_t, uint32_t>> & ranges);
    static void read_exact(llama_kv_cache & cache, llama_io_read_i & io, uint32_t stream,
                           const std::vector<uint32_t> & cells);

    // the layer whose tensors layer il reads
    static uint32_t stored_layer(const llama_kv_cache & cache, uint32_t il);

    // what the keys of layer il are less of, or null; a cache that shares cells has the other's
    static const kvtuner_centers & centers(const llama_kv_cache & cache);
    static const kvtuner_center * center(const llama_kv_cache & cache, uint32_t il);

    // by what the keys of layer il are multiplied, or null
    static const kvtuner_key_scale * key_scale(const llama_kv_cache & cache, uint32_t il);
    static ggml_tensor * scale(const llama_kv_cache & cache, uint32_t il);

    // Inputs for the blocks of what the elements of `key`, an input itself, stand for: the indices of a write, or the
    // turns of a context shift. Gives `key` back.
    static ggml_tensor * build_blocks(const llama_kv_cache & cache, ggml_context * ctx, ggml_tensor * key);
    static void set_blocks(const llama_kv_cache_context & context, const ggml_tensor * k_idxs);

    // x [head size, KV heads, tokens] less the centers of layer il, or with those that it is less of
    static ggml_tensor * less_center(const llama_kv_cache & cache, ggml_context * ctx, ggml_tensor * x,
                                     const ggml_tensor * key, uint32_t il);
    static ggml_tensor * with_center(const llama_kv_cache & cache, ggml_context * ctx, ggml_tensor * x,
                                     const ggml_tensor * key, uint32_t il);

    // the matrix of n x n by which the cache rotates, if it keeps one: otherwise null, and it is an input
    static ggml_tensor * kept_rotation(const llama_kv_cache & cache, int64_t n);

    // the rotation that a context shift takes back, or null
    static ggml_tensor * shifted_rotation(const llama_kv_cache & cache, ggml_tensor * rotation);

    // True if a context shift converts the keys of layer il to f32 and back, which takes whole heads: rows of a
    // quantized type are written back whole, a rotated head is not rotated back in part, and a center belongs to the
    // whole key. Other layers are shifted in place.
    static bool shifts_whole_heads(const llama_kv_cache & cache, uint32_t il, ggml_type type);

    // with a plan, the rotation in a graph of a hybrid model with a sliding window, which upstream's leaves out
    static void build_rotation(ggml_context * ctx, const llama_kv_cache_iswa_context & context,
                               llm_graph_input_attn_kv_iswa & input);
};
