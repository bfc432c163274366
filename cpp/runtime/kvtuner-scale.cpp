#include "kvtuner-scale.h"

#include "kvtuner-cache.h"

#include "ggml.h"

// query heads that share a KV head lie side by side
static ggml_tensor * divided(ggml_context * ctx, ggml_tensor * q, ggml_tensor * scale) {
    const int64_t n_head_kv = scale->ne[1], n_group = q->ne[1] / n_head_kv;
    ggml_tensor * groups =
            ggml_view_4d(ctx, q, q->ne[0], n_group, n_head_kv, q->ne[2], q->nb[1], n_group * q->nb[1], q->nb[2], 0);
    ggml_tensor * factors = ggml_reshape_3d(ctx, scale, scale->ne[0], 1, n_head_kv);
    return ggml_reshape_3d(ctx, ggml_div(ctx, groups, factors), q->ne[0], q->ne[1], q->ne[2]);
}

void kvtuner_scale(ggml_context * ctx, const llama_kv_cache_context & context, ggml_tensor *& q, ggml_tensor *& k,
                   int32_t il) {
    ggml_tensor * scale = kvtuner_cache::scale(kvtuner_cache::of(context), (uint32_t)il);
    if (!scale) {
        return;
    }
    q = divided(ctx, q, scale);
    k = k ? ggml_mul(ctx, k, scale) : nullptr;
}
