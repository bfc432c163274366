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

constexpr size_t MEMORY_ALIGNMENT = 128;

// The memory of a graph's products: rows as they are read, sums of blocks that share values, tickets.
static size_t code_bytes(const ggml_tensor * rows) {
    return (size_t)all_thin_tiles((int)ggml_nrows(rows)) * THIN_TILE * rows->ne[0];
}

static size_t row_bytes(const ggml_tensor * rows) {
    return code_bytes(rows) + code_bytes(rows) / (THIN_BLOCK * THIN_TILE) * 4 * sizeof(thin_scales);
}

static thin_rows rows_at(char * memory, const ggml_tensor * rows) {
    return { (uint2 *)memory, (thin_scales *)(memory + code_bytes(rows)), all_thin_tiles((int)ggml_nrows(rows)) };
}

static thin_shape shape_of(const ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const int n_rows = (int)ggml_nrows(node->src[1]);
    const int stride = with_thin_type(weights->type, [](auto type) { return thin_weights<type()>::STRIDE; });
    return { stride, (int)weights->ne[0] / THIN_STEP, (int)weights->ne[1], thin_tiles(n_rows), all_thin_tiles(n_rows) };
}

static thin_launch launch_of(int device, const thin_shape & shape) {
    return thin_launch_of(shape, { ggml_cuda_info().devices[device].nsm, (int)ggml_cuda_info().devices[device].smpbo });
}

static size_t part_bytes(const thin_shape & shape, const thin_launch & how) {
    return how.n_splits == 1 ? 0 : (size_t)how.n_splits * shape.n_tiles * THIN_TILE * shape.n_weights * sizeof(float);
}

static int tickets_of(const thin_shape & shape, const thin_launch & how) {
    return how.n_splits == 1 ? 0 : thin_blocks(shape, how.parts) * (shape.n_tiles / shape.tiles);
}

static bool can_do(const ggml_backend_cuda_context & ctx, const ggml_tensor * node) {
    return ggml_cuda_highest_compiled_arch(ggml_cuda_info().devices[ctx.device].cc) >= GGML_CUDA_CC_AMPERE &&
           is_thin_product(node) &&
           ggml_backend_buffer_get_type(node->src[0]->buffer) == ggml_backend_cuda_buffer_type(ctx.device);
}

struct thin_call {
    thin_args args;
    thin_shape shape;
    thin_launch how;
};

template <ggml_type T, int PARTS, int TILES>
static void launch(ggml_backend_cuda_context & ctx, const thin_call & call) {
    CUDA_SET_SHARED_MEMORY_LIMIT((multiply_thin<T, PARTS, TILES>), ggml_cuda_info().devices[ctx.device].smpbo);
    const dim3 grid(thin_blocks(call.shape, PARTS), call.shape.n_tiles / TILES, call.how.n_splits);
    const ggml_cuda_kernel_launch_params params(grid, dim3(THIN_WARPS * THIN_LANES), (size_t)call.how.shared_bytes,
                                                ctx.stream());
    ggml_cuda_kernel_launch(multiply_thin<T, PARTS, TILES>, params, call.args);
}

template <ggml_type T, int TILES>
static void launch(ggml_backend_cuda_context & ctx, const thin_call & call) {
    if constexpr (thin_weights<T>::STRIDE <= MOST_STRIDE_OF_PARTS) {
        if (call.how.parts == MOST_THIN_PARTS) {
            return launch<T, MOST_THIN_PARTS, TILES>(ctx, call);
        }
    }
    launch<T, 1, TILES>(ctx, call);
}

template <ggml_type T>
static void launch(ggml_backend_cuda_context & ctx, const thin_call & call) {
    switch (call.shape.tiles) {
        case 1:
            return launch<T, 1>(ctx, call);
        case 2:
            return launch<T, 2>(ctx, call);
        default:
            return launch<T, MOST_THIN_TILES>(ctx, call);
    }
}

static void quantize(const ggml_tensor * rows, const thin_rows & to, int * tickets, int n_tickets,
                     cudaStream_t stream) {
    const thin_rows_args args = {
        (const float *)rows->data, (int)rows->ne[0], (int)ggml_nrows(rows), to, tickets, n_tickets
    };
    const dim3 grid(args.n_values / THIN_STEP, to.n_tiles * THIN_TILE);
    const ggml_cuda_kernel_launch_params params(grid, dim3(THIN_ROWS_THREADS), (size_t)0, stream);
    ggml_cuda_kernel_launch(quantize_thin, params, args);
}

}  // namespace

thin_products::thin_products(ggml_backend_cuda_context & ctx, const ggml_cgraph & graph, bool is_off)
    : ctx(ctx), memory(ctx.pool()) {
    for (int i = 0; i < graph.n_nodes && !is_off; ++i) {
        const ggml_tensor * node = graph.nodes[i];
        if (can_do(ctx, node)) {
            const thin_shape shape = shape_of(node);
            const thin_launch how = launch_of(ctx.device, shape);
            n_row_bytes = std::max(n_row_bytes, GGML_PAD(row_bytes(node->src[1]), MEMORY_ALIGNMENT));
            n_part_bytes = std::max(n_part_bytes, GGML_PAD(part_bytes(shape, how), MEMORY_ALIGNMENT));
            n_tickets = std::max(n_tickets, tickets_of(shape, how));
        }
    }
    if (n_row_bytes > 0) {
        memory.alloc(n_row_bytes + n_part_bytes + n_tickets * sizeof(int));
    }
}

bool thin_products::takes(const ggml_tensor * node) const {
    return n_row_bytes > 0 && can_do(ctx, node);
}

// On other streams than the first, products run side by side.
bool thin_products::run(const ggml_tensor * node) {
    if (ctx.curr_stream_no != 0 || !takes(node)) {
        return false;
    }
    const ggml_tensor *weights = node->src[0], *rows = node->src[1];
    thin_call call = {};
    call.shape = shape_of(node);
    call.how = launch_of(ctx.device, call.shape);
    thin_args & args = call.args;
    args.weights = (const char *)weights->data;
    args.stride = (int64_t)weights->nb[1];
    args.rows = rows_at(memory.ptr, rows);
    args.out = (float *)node->data;
    args.parts = (float *)(memory.ptr + n_row_bytes);
    args.tickets = (int *)(memory.ptr + n_row_bytes + n_part_bytes);
    args.n_values = (int)weights->ne[0];
    args.n_weights = (int)weights->ne[1];
    args.n_rows = (int)ggml_nrows(rows);
    args.n_stages = call.how.n_stages;
    if (!kept.take(rows)) {
        quantize(rows, args.rows, args.tickets, n_tickets, ctx.stream());
    }
    with_thin_type(weights->type, [&](auto type) { launch<type()>(ctx, call); });
    return true;
}
#endif
