#include "kvtuner-cuda-norm.cuh"

using kvtuner::multiplied_norm;

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
bool kvtuner_cuda_takes(const multiplied_norm &) {
    return false;
}

void kvtuner_cuda_norm(ggml_backend_cuda_context &, const multiplied_norm &) {
}
#else
#    include "kvtuner-cuda-norm-kernel.cuh"
#    include "kvtuner-cuda-quantized.cuh"

#    include "ggml-cuda/mmvq.cuh"

#    include <cstring>

using namespace kvtuner::cuda;

static_assert(NORM_PADDING == MATRIX_ROW_PADDING && Q8_BYTES == sizeof(block_q8_1));

static int n_threads(const multiplied_norm & norm) {
    return norm.norm->ne[0] < SHORT_NORM ? FEW_NORM_THREADS : MANY_NORM_THREADS;
}

bool kvtuner_cuda_takes(const multiplied_norm & norm) {
    return norm.norm->ne[0] <= NORM_VALUES * n_threads(norm) && ggml_nrows(norm.rows) <= MMVQ_MAX_BATCH_SIZE;
}

void kvtuner_cuda_norm(ggml_backend_cuda_context & ctx, const multiplied_norm & norm) {
    const ggml_tensor * x = norm.norm->src[0];
    norm_args args = {};
    args.rows = (const float *)x->data;
    args.weights = (const float *)norm.weights->data;
    args.out = (float *)norm.out->data;
    args.q8 = kvtuner_cuda_quantizes(ctx, norm.rows);
    args.row_stride = (int64_t)(x->nb[1] / sizeof(float));
    args.n_values = (int)x->ne[0];
    memcpy(&args.eps, norm.norm->op_params, sizeof(args.eps));
    const auto kernel =
            n_threads(norm) == FEW_NORM_THREADS ? norm_rows<FEW_NORM_THREADS> : norm_rows<MANY_NORM_THREADS>;
    const ggml_cuda_kernel_launch_params params(dim3(x->ne[1]), dim3(n_threads(norm)), (size_t)0, ctx.stream());
    ggml_cuda_kernel_launch(kernel, params, args);
}
#endif
