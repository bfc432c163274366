// Per-layer K and V cache types: the public C interface.
//
// A plan names the K and the V cache type of every layer. It hangs on the model: contexts that are created from the
// model afterwards allocate their cache by it, if both type_k and type_v of their parameters are left at f16, the
// default. Any other type_k or type_v gives the uniform cache asked for.
//
// A plan may also hold centers: vectors that are taken off the keys of a layer before they are written, which
// changes nothing in exact arithmetic and lets them lose less in few bits. With use_centers false they are left out.
// Nor do scales change anything, by which keys are multiplied and queries divided. And it may have exact ends: so many
// first and last positions that a query reads as they were before quantization. With use_ends false they are left out,
// and with them the scales, which are for all other positions.
//
// A kv_config says where the plan comes from:
//   "auto"   the model's own metadata, if it has a plan (the default, also where the text is empty)
//   "none"   no plan
//   else     the path of a plan JSON, or the JSON itself where the text starts with '{'
#pragma once

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// True if the kv_config is "auto", "none" or a plan that can be read, whatever model it is for; else err says why not.
// types_given says that the user named uniform cache types, with which a plan conflicts.
LLAMA_API bool kvtuner_check_kv_config(const char * kv_config, bool types_given, char * err, size_t err_size);

// Select the plan of a loaded model. On false nothing has changed and err holds one line that says why.
LLAMA_API bool kvtuner_model_set_kv_config(struct llama_model * model, const char * kv_config, bool use_centers,
                                           bool use_ends, char * err, size_t err_size);

// An entry for the kv_overrides of llama_model_params: a model loaded with it starts with this kv_config. types_given
// says that the user named uniform cache types: then "auto" means no plan, and a plan file is a conflict that the load
// refuses.
LLAMA_API struct llama_model_kv_override kvtuner_kv_override(const char * kv_config, bool types_given, bool use_centers,
                                                             bool use_ends);

// True if a context with these parameters has a quantized V in some layer, so that it needs FlashAttention.
LLAMA_API bool kvtuner_needs_flash_attn(const struct llama_model * model, const struct llama_context_params * params);

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
LLAMA_API bool kvtuner_is_scaled_k(const struct llama_context * ctx, int32_t il);

// Bytes of all K and V, the rows of exact ends among them.
LLAMA_API uint64_t kvtuner_kv_bytes(const struct llama_context * ctx);

// Bytes of the tables of centers that turn with positions, which are beside them; 0 where one center serves all.
LLAMA_API uint64_t kvtuner_centers_bytes(const struct llama_context * ctx);

// The exact ends that a context reads, type as a ggml_type number; false where no layer has any.
LLAMA_API bool kvtuner_exact_ends(const struct llama_context * ctx, uint32_t * first, uint32_t * last, int32_t * type);
LLAMA_API bool kvtuner_has_exact_ends(const struct llama_context * ctx, int32_t il);
LLAMA_API uint64_t kvtuner_exact_ends_bytes(const struct llama_context * ctx);

// Bytes of them that n_tokens tokens of one sequence take.
LLAMA_API uint64_t kvtuner_kv_bytes_used(const struct llama_context * ctx, uint64_t n_tokens);

// True bits per cached value, block scales included, exact ends and tables of centers left out; 0 without a cache.
LLAMA_API double kvtuner_bits_per_value(const struct llama_context * ctx);

// True if the context's cache follows a plan.
LLAMA_API bool kvtuner_has_plan(const struct llama_context * ctx);

// The plan's fingerprint, 16 hex digits as `kvtuner-gguf inspect` shows them; empty without a plan.
LLAMA_API size_t kvtuner_fingerprint(const struct llama_context * ctx, char * text, size_t text_size);

// Where the plan was read from: "metadata", "JSON", the path of a file, or "none". Valid as long as the context.
LLAMA_API const char * kvtuner_source(const struct llama_context * ctx);

// The first error that the library logged in this thread since the last call, in one line; empty if there was none.
// Call it before what may fail, to forget what was, and after. The text is valid until the thread's
// next call or load of a state.
LLAMA_API const char * kvtuner_take_reason(void);

// Why this thread's last load of a state was refused for its plan, in one line; empty if it was not. The call forgets
// it; the text is valid until the thread's next call.
LLAMA_API const char * kvtuner_take_state_refusal(void);

#ifdef __cplusplus
}
#endif
