#include "kvtuner-cuda-attention.cuh"
#include "kvtuner-cuda-quantized.cuh"

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

static std::optional<prefill_plan> prefill_plan_of(int, const ggml_tensor *, const rotations & = {}) {
    return std::nullopt;
}

static void run(ggml_backend_cuda_context &, attention_plan &, const ggml_tensor *, const rotations &) {
}

static void run(ggml_backend_cuda_context &, prefill_plan &, const ggml_tensor *, kept_masks &) {
}
#else
static device_limits limits_of(int device) {
    const auto & info = ggml_cuda_info().devices[device];
    return { info.nsm, (int)info.smpbo, ggml_cuda_highest_compiled_arch(info.cc) >= GGML_CUDA_CC_HOPPER };
}

static std::optional<attention_plan> plan_of(int device, const ggml_tensor * node, const rotations & around = {}) {
    if (!ampere_mma_available(ggml_cuda_info().devices[device].cc)) {
        return std::nullopt;
    }
    return plan_attention(node, around, limits_of(device));
}

// Whether tensor cores sum products of halves as floats as fast as they do as halves: those of A100, H100 and B200 do,
// those of GeForce cards take twice the time, and there upstream's kernels sum as halves.
static bool sums_floats_fast(int cc) {
    return cc == GGML_CUDA_CC_AMPERE || cc == GGML_CUDA_CC_HOPPER || (cc >= 1000 && cc < 1200);
}

static std::optional<prefill_plan> prefill_plan_of(int device, const ggml_tensor * node,
                                                   const rotations & around = {}) {
    const int cc = ggml_cuda_info().devices[device].cc;
    if (!ampere_mma_available(cc) || !sums_floats_fast(cc)) {
        return std::nullopt;
    }
    return plan_prefill(node, around, limits_of(device));
}

// what parts of tokens come to, of as many columns
struct parts_memory {
    ggml_cuda_pool_alloc<float> parts;
    ggml_cuda_pool_alloc<float2> sums;

    parts_memory(ggml_backend_cuda_context & ctx, const ggml_tensor * node, merge_args & merge)
        : parts(ctx.pool(), merge.n_parts * ggml_nelements(node)), sums(ctx.pool(), merge.n_parts * ggml_nrows(node)) {
        merge.parts = parts.ptr;
        merge.sums = sums.ptr;
    }
};

// Where the output goes as q8_1, too, if a product reads it so. Rows of other lengths end with zeros there.
static char * place_of_q8(const ggml_backend_cuda_context & ctx, const rotations & around) {
    const ggml_tensor * rows = around.multiplied;
    return rows && rows->ne[0] % MATRIX_ROW_PADDING == 0 ? kvtuner_cuda_quantizes(ctx, rows) : nullptr;
}

static void run(ggml_backend_cuda_context & ctx, attention_plan & plan, const ggml_tensor * node,
                const rotations & around) {
    const parts_memory memory(ctx, node, plan.args.merge);
    plan.args.merge.out_q8 = place_of_q8(ctx, around);
    plan.launch.stream = ctx.stream();
    launch_plan(plan, node->src[1]->ne[0], node->ne[0]);
}

static void run(ggml_backend_cuda_context & ctx, prefill_plan & plan, const ggml_tensor * node, kept_masks & masks) {
    prefill_args & args = plan.args;
    const ggml_tensor * exact = kvtuner_has_exact(node) ? node->src[KVTUNER_EXACT_AT + 2] : nullptr;
    plan.launch.stream = ctx.stream();
    args.seen_by.marks = (seen *)masks.of(kept_masks::what::MARKS, node->src[KVTUNER_MASK_AT], exact,
                                          args.seen_by.size() * sizeof(seen), [&](char * to) {
                                              args.seen_by.marks = (seen *)to;
                                              mark_seen(seen_of(args), ctx.stream());
                                          });
    const parts_memory memory(ctx, node, args.merge);
    launch_plan(plan, node->src[1]->ne[0], node->ne[0]);
}
#endif

}  // namespace

bool kvtuner_cuda_attention_is_fast(int device, const ggml_tensor * node) {
    return is_left(device, node) || kvtuner_cuda_attention_rotates(device, node);
}

bool kvtuner_cuda_attention_rotates(int device, const ggml_tensor * node) {
    return plan_of(device, node) || prefill_plan_of(device, node);
}

bool kvtuner_cuda_attention_runs(int device, const ggml_tensor * node) {
    return runs_dense(device, node);
}

bool kvtuner_cuda_attention(ggml_backend_cuda_context & ctx, ggml_tensor * node, const rotations & around,
                            kept_masks & masks) {
    if (!kvtuner_is_marked(node)) {
        return false;
    }
    const bool is_rotated = around.q || around.out;
    if (is_rotated || !is_left(ctx.device, node)) {
        if (auto plan = plan_of(ctx.device, node, around)) {
            run(ctx, *plan, node, around);
            return true;
        }
        if (auto plan = prefill_plan_of(ctx.device, node, around)) {
            run(ctx, *plan, node, masks);
            return true;
        }
    }
    GGML_ASSERT(!is_rotated);
    return attend_dense(ctx, node, masks);
}

bool kvtuner_cuda_attention(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    kept_masks masks(ctx);
    return kvtuner_cuda_attention(ctx, node, {}, masks);
}
