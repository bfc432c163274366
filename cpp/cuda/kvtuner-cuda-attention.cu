#include "kvtuner-cuda-attention.cuh"

#include "ggml-cuda/fattn.cuh"

#include "kvtuner-mark.h"

using namespace kvtuner::cuda;
using kvtuner::rotations;

namespace {

// cached tokens of all streams up to which upstream's kernels are faster where they need no conversion
constexpr int64_t MOST_LEFT = 10 * 1024;

static bool is_left(int device, const ggml_tensor * node) {
    const ggml_tensor *k = node->src[1], *v = node->src[2];
    return k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 && k->ne[1] * k->ne[3] <= MOST_LEFT &&
           !kvtuner_has_exact(node) && !node->src[KVTUNER_CENTERS_AT] && runs_dense(device, node);
}

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
static std::optional<attention_plan> plan_of(int, const ggml_tensor *, const rotations & = {}) {
    return std::nullopt;
}

static void run(ggml_backend_cuda_context &, attention_plan &, const ggml_tensor *) {
}
#else
static std::optional<attention_plan> plan_of(int device, const ggml_tensor * node, const rotations & around = {}) {
    const auto & info = ggml_cuda_info().devices[device];
    if (!ampere_mma_available(info.cc)) {
        return std::nullopt;
    }
    const bool takes_rows = ggml_cuda_highest_compiled_arch(info.cc) >= GGML_CUDA_CC_HOPPER;
    return plan_attention(node, around, { info.nsm, (int)info.smpbo, takes_rows });
}

static void run(ggml_backend_cuda_context & ctx, attention_plan & plan, const ggml_tensor * node) {
    const int64_t n = plan.n_columns * plan.launch.n_parts * plan.launch.n_stream, size_v = node->ne[0];
    ggml_cuda_pool_alloc<float> parts(ctx.pool(), n * size_v);
    ggml_cuda_pool_alloc<float2> sums(ctx.pool(), n);
    plan.args.merge.parts = parts.ptr;
    plan.args.merge.sums = sums.ptr;
    plan.launch.stream = ctx.stream();
    launch_plan(plan, node->src[1]->ne[0], size_v);
}
#endif

}  // namespace

bool kvtuner_cuda_attention_is_fast(int device, const ggml_tensor * node) {
    return is_left(device, node) || kvtuner_cuda_attention_rotates(device, node);
}

bool kvtuner_cuda_attention_rotates(int device, const ggml_tensor * node) {
    return plan_of(device, node).has_value();
}

bool kvtuner_cuda_attention_runs(int device, const ggml_tensor * node) {
    return runs_dense(device, node);
}

bool kvtuner_cuda_attention(ggml_backend_cuda_context & ctx, ggml_tensor * node, const rotations & around,
                            joined_masks & masks) {
    if (!kvtuner_is_marked(node)) {
        return false;
    }
    const bool is_rotated = around.q || around.out;
    if (is_rotated || !is_left(ctx.device, node)) {
        if (auto plan = plan_of(ctx.device, node, around)) {
            run(ctx, *plan, node);
            return true;
        }
    }
    GGML_ASSERT(!is_rotated);
    return attend_dense(ctx, node, masks);
}

bool kvtuner_cuda_attention(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    joined_masks masks(ctx);
    return kvtuner_cuda_attention(ctx, node, {}, masks);
}
