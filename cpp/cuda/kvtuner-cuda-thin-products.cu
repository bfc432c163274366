#include "kvtuner-cuda-thin-products.cuh"

#include "kvtuner-thin.h"

using kvtuner::cuda::thin_products;

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
thin_products::thin_products(ggml_backend_cuda_context & ctx, const ggml_cgraph &, bool)
    : ctx(ctx), memory(ctx.pool()) {
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

constexpr int BLOCKS_AT_ONCE = 2;           // of threads, on a multiprocessor
constexpr int KEPT_OF_SHARED_BYTES = 1024;  // of each of these

static int tiles_of(int64_t n_rows) {
    const int n = (int)((n_rows + THIN_TILE - 1) / THIN_TILE);
    return n <= 2 ? n : MOST_THIN_TILES;  // of a block of threads
}

static int all_tiles_of(int64_t n_rows) {
    const int n = (int)((n_rows + THIN_TILE - 1) / THIN_TILE), tiles = tiles_of(n_rows);
    return (n + tiles - 1) / tiles * tiles;
}

static size_t code_bytes(const ggml_tensor * rows) {
    return (size_t)all_tiles_of(ggml_nrows(rows)) * THIN_TILE * rows->ne[0];
}

static size_t all_bytes(const ggml_tensor * rows) {
    return code_bytes(rows) + code_bytes(rows) / (THIN_BLOCK * THIN_TILE) * 4 * sizeof(thin_scales);
}

static thin_rows rows_at(char * memory, const ggml_tensor * rows) {
    return { (uint2 *)memory, (thin_scales *)(memory + code_bytes(rows)), all_tiles_of(ggml_nrows(rows)) };
}

static bool can_do(const ggml_backend_cuda_context & ctx, const ggml_tensor * node) {
    return ggml_cuda_highest_compiled_arch(ggml_cuda_info().devices[ctx.device].cc) >= GGML_CUDA_CC_AMPERE &&
           is_thin_product(node) &&
           ggml_backend_buffer_get_type(node->src[0]->buffer) == ggml_backend_cuda_buffer_type(ctx.device);
}

// So many stages that two blocks of threads fit, if these are two at least.
static int stages_of(int device, int step_bytes, int n_steps) {
    const int all = (int)ggml_cuda_info().devices[device].smpbo, of_stage = THIN_WARPS * step_bytes;
    const int of_two = (all + KEPT_OF_SHARED_BYTES) / BLOCKS_AT_ONCE - KEPT_OF_SHARED_BYTES - THIN_BARRIER_BYTES;
    const int of_one = all - THIN_BARRIER_BYTES;
    const int n = of_two >= 2 * of_stage ? of_two / of_stage : of_one / of_stage;
    return std::min({ n, MOST_THIN_STAGES, (n_steps + THIN_WARPS - 1) / THIN_WARPS });
}

template <ggml_type T, int PARTS, int TILES>
static void launch(const ggml_backend_cuda_context & ctx, thin_args args, cudaStream_t stream) {
    constexpr int STEP_BYTES = THIN_STEP_BYTES<T, PARTS>;
    args.n_stages = stages_of(ctx.device, STEP_BYTES, args.n_values / THIN_STEP);
    CUDA_SET_SHARED_MEMORY_LIMIT((multiply_thin<T, PARTS, TILES>), ggml_cuda_info().devices[ctx.device].smpbo);
    const dim3 grid((args.n_weights + 16 * PARTS - 1) / (16 * PARTS), args.rows.n_tiles / TILES);
    const size_t n_shared = THIN_BARRIER_BYTES + (size_t)args.n_stages * THIN_WARPS * STEP_BYTES;
    const ggml_cuda_kernel_launch_params params(grid, dim3(THIN_WARPS * THIN_LANES), n_shared, stream);
    ggml_cuda_kernel_launch(multiply_thin<T, PARTS, TILES>, params, args);
}

// two parts for a block of threads, unless too few blocks would be left
template <ggml_type T, int TILES>
static void launch(const ggml_backend_cuda_context & ctx, const thin_args & args, cudaStream_t stream) {
    const int n_blocks = args.n_weights / 32 * (args.rows.n_tiles / TILES);
    n_blocks < BLOCKS_AT_ONCE * ggml_cuda_info().devices[ctx.device].nsm ? launch<T, 1, TILES>(ctx, args, stream)
                                                                         : launch<T, 2, TILES>(ctx, args, stream);
}

template <ggml_type T>
static void launch(const ggml_backend_cuda_context & ctx, const thin_args & args, cudaStream_t stream) {
    switch (tiles_of(args.n_rows)) {
        case 1:
            return launch<T, 1>(ctx, args, stream);
        case 2:
            return launch<T, 2>(ctx, args, stream);
        default:
            return launch<T, MOST_THIN_TILES>(ctx, args, stream);
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

// On other streams than the first, products run side by side.
bool thin_products::run(const ggml_tensor * node) {
    if (n_bytes == 0 || ctx.curr_stream_no != 0 || !can_do(ctx, node)) {
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
            launch<GGML_TYPE_Q4_0>(ctx, args, ctx.stream());
            break;
        case GGML_TYPE_Q8_0:
            launch<GGML_TYPE_Q8_0>(ctx, args, ctx.stream());
            break;
        default:
            launch<GGML_TYPE_Q4_K>(ctx, args, ctx.stream());
    }
    return true;
}
#endif
