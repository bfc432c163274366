#include "kvtuner-cuda-thin-products.cuh"

#include "kvtuner-thin.h"

using kvtuner::cuda::thin_products;

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
thin_products::thin_products(ggml_backend_cuda_context & ctx, const ggml_cgraph &, bool)
    : ctx(ctx), memory(ctx.pool()) {
}

bool thin_products::takes(const ggml_tensor *) const {
    return false;
}

bool thin_products::run(const ggml_tensor *) {
    return false;
}
#else
#    include "kvtuner-cuda-thin.cuh"

#    include <algorithm>

using namespace kvtuner;
using namespace kvtuner::cuda;

namespace {

static_assert(THIN_STEP == THIN_VALUES);

static size_t code_bytes(const ggml_tensor * rows) {
    return (size_t)all_thin_tiles((int)ggml_nrows(rows)) * THIN_TILE * rows->ne[0];
}

static size_t all_bytes(const ggml_tensor * rows) {
    return code_bytes(rows) + code_bytes(rows) / (THIN_BLOCK * THIN_TILE) * 4 * sizeof(thin_scales);
}

static thin_rows rows_at(char * memory, const ggml_tensor * rows) {
    return { (uint2 *)memory, (thin_scales *)(memory + code_bytes(rows)), all_thin_tiles((int)ggml_nrows(rows)) };
}

static bool can_do(const ggml_backend_cuda_context & ctx, const ggml_tensor * node) {
    return ggml_cuda_highest_compiled_arch(ggml_cuda_info().devices[ctx.device].cc) >= GGML_CUDA_CC_AMPERE &&
           is_thin_product(node) &&
           ggml_backend_buffer_get_type(node->src[0]->buffer) == ggml_backend_cuda_buffer_type(ctx.device);
}

template <ggml_type T, int PARTS, int TILES>
static void launch(ggml_backend_cuda_context & ctx, const thin_args & args, int shared_bytes) {
    CUDA_SET_SHARED_MEMORY_LIMIT((multiply_thin<T, PARTS, TILES>), ggml_cuda_info().devices[ctx.device].smpbo);
    const dim3 grid((args.n_weights + THIN_PART * PARTS - 1) / (THIN_PART * PARTS), args.rows.n_tiles / TILES);
    const ggml_cuda_kernel_launch_params params(grid, dim3(THIN_WARPS * THIN_LANES), (size_t)shared_bytes,
                                                ctx.stream());
    ggml_cuda_kernel_launch(multiply_thin<T, PARTS, TILES>, params, args);
}

template <ggml_type T, int TILES>
static void launch(ggml_backend_cuda_context & ctx, thin_args args) {
    const auto & device = ggml_cuda_info().devices[ctx.device];
    const thin_launch how = thin_launch_of(
            { thin_weights<T>::STRIDE, args.n_values / THIN_STEP, args.n_weights, TILES, args.rows.n_tiles },
            { device.nsm, (int)device.smpbo });
    args.n_stages = how.n_stages;
    how.parts == 1 ? launch<T, 1, TILES>(ctx, args, how.shared_bytes)
                   : launch<T, MOST_THIN_PARTS, TILES>(ctx, args, how.shared_bytes);
}

template <ggml_type T>
static void launch(ggml_backend_cuda_context & ctx, const thin_args & args) {
    switch (thin_tiles(args.n_rows)) {
        case 1:
            return launch<T, 1>(ctx, args);
        case 2:
            return launch<T, 2>(ctx, args);
        default:
            return launch<T, MOST_THIN_TILES>(ctx, args);
    }
}

static void quantize(const ggml_tensor * rows, const thin_rows & to, cudaStream_t stream) {
    const thin_rows_args args = { (const float *)rows->data, (int)rows->ne[0], (int)ggml_nrows(rows), to };
    const dim3 grid(args.n_values / THIN_STEP, to.n_tiles * THIN_TILE);
    const ggml_cuda_kernel_launch_params params(grid, dim3(THIN_ROWS_THREADS), (size_t)0, stream);
    ggml_cuda_kernel_launch(quantize_thin, params, args);
}

}  // namespace

thin_products::thin_products(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph, bool is_off)
    : ctx(ctx), memory(ctx.pool()) {
    for (int i = 0; i < graph.n_nodes && !is_off; ++i) {
        if (can_do(ctx, graph.nodes[i])) {
            n_bytes = std::max(n_bytes, all_bytes(graph.nodes[i]->src[1]));
        }
    }
    if (n_bytes > 0) {
        memory.alloc(n_bytes);
    }
}

bool thin_products::takes(const ggml_tensor * node) const {
    return n_bytes > 0 && can_do(ctx, node);
}

// On other streams than the first, products run side by side.
bool thin_products::run(const ggml_tensor * node) {
    if (ctx.curr_stream_no != 0 || !takes(node)) {
        return false;
    }
    const ggml_tensor *weights = node->src[0], *rows = node->src[1];
    thin_args args = {};
    args.weights = (const char *)weights->data;
    args.stride = (int64_t)weights->nb[1];
    args.rows = rows_at(memory.ptr, rows);
    args.out = (float *)node->data;
    args.n_values = (int)weights->ne[0];
    args.n_weights = (int)weights->ne[1];
    args.n_rows = (int)ggml_nrows(rows);
    if (!kept.take(rows)) {
        quantize(rows, args.rows, ctx.stream());
    }
    switch (weights->type) {
        case GGML_TYPE_Q4_0:
            launch<GGML_TYPE_Q4_0>(ctx, args);
            break;
        case GGML_TYPE_Q8_0:
            launch<GGML_TYPE_Q8_0>(ctx, args);
            break;
        case GGML_TYPE_Q4_K:
            launch<GGML_TYPE_Q4_K>(ctx, args);
            break;
        default:
            launch<GGML_TYPE_Q6_K>(ctx, args);
    }
    return true;
}
#endif
