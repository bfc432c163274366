// Per-layer K and V cache types: the public C interface.
//
// A plan names the K and the V cache type of every layer. It hangs on the model: contexts that are created from the
// model afterwards allocate their cache by it, if both type_k and type_v of their parameters are left at f16, the
// default. Any other type_k or type_v gives the uniform cache asked for.
//
// A plan may also hold centers: vectors that are taken off the keys or values of a layer before they are written, which
// changes nothing in exact arithmetic and lets them lose less in few bits. With use_centers false they are left out.
//
// A kv_config says where the plan comes from:
//   "auto"   the model's own metadata, if it has a plan (the default)
//   "none"   no plan
//   else     the path of a plan JSON, or the JSON itself where the text starts with '{'
#pragma once

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// Select the plan of a loaded model. On false nothing has changed and err holds one line that says why.
LLAMA_API bool kvtuner_model_set_kv_config(struct llama_model * model, const char * kv_config, bool use_centers,
                                           char * err, size_t err_size);

// Select the kv_config that models loaded from path_model afterwards start with. types_given says that the user named
// uniform cache types: then "auto" means no plan, and a plan file is a conflict that the load refuses.
LLAMA_API void kvtuner_path_set_kv_config(const char * path_model, const char * kv_config, bool types_given,
                                          bool use_centers);

// True if the selected plan quantizes V in some layer, so that contexts need FlashAttention.
LLAMA_API bool kvtuner_model_needs_flash_attn(const struct llama_model * model);

// True if a context with these parameters can be created as far as the plan is concerned; else err says why not.
LLAMA_API bool kvtuner_check_context(const struct llama_model * model, const struct llama_context_params * params,
                                     char * err, size_t err_size);

// True if the GGUF file carries a plan.
LLAMA_API bool kvtuner_file_has_plan(const char * path_model);

// What a context really allocated. Types are ggml_type numbers, -1 for a layer without a cache of its own.
LLAMA_API int32_t kvtuner_n_layer(const struct llama_context * ctx);
LLAMA_API int32_t kvtuner_type_k(const struct llama_context * ctx, int32_t il);
LLAMA_API int32_t kvtuner_type_v(const struct llama_context * ctx, int32_t il);
LLAMA_API bool kvtuner_is_centered_k(const struct llama_context * ctx, int32_t il);
LLAMA_API bool kvtuner_is_centered_v(const struct llama_context * ctx, int32_t il);
LLAMA_API uint64_t kvtuner_kv_bytes(const struct llama_context * ctx);

// True bits per cached value, block scales included; 0 without a cache.
LLAMA_API double kvtuner_bits_per_value(const struct llama_context * ctx);

// True if the context's cache follows a plan.
LLAMA_API bool kvtuner_has_plan(const struct llama_context * ctx);

#ifdef __cplusplus
}
#endif
