#include "kvtuner-cuda-write.cuh"

#include "ggml-cuda/common.cuh"
#include "ggml-cuda/convert.cuh"
#include "ggml-cuda/cpy-utils.cuh"

#include "ggml-impl.h"

#include <cstdlib>

namespace {

constexpr int WARP = 32;
constexpr int WARPS_PER_BLOCK = 4;
constexpr int PLAIN = 32;  // values that a warp takes where nothing is rotated

struct write_args {
    const float * rows;
    int64_t stride;  // values from a row to the next
    const float * center;
    const int64_t * indices;
    char * cache;
    int64_t cache_stride;  // bytes
    int row_length;
    int pieces_per_row;
    int64_t n_pieces;
    float scale;
};

// Walsh-Hadamard transform of N values, value i * 32 + lane in x[i]: the order of additions is upstream's (fwht.cu)
template <int N>
__device__ void transform(float (&x)[N / WARP], const int lane) {
#pragma unroll
    for (int h = 1; h < WARP; h *= 2) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            const float mine = x[i];
            const float other = __shfl_xor_sync(0xFFFFFFFF, mine, h, WARP);
            x[i] = (lane & h) == 0 ? mine + other : other - mine;
        }
    }
#pragma unroll
    for (int step = 1; step < N / WARP; step *= 2) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            if ((i & step) == 0) {
                const float low = x[i];
                const float high = x[i + step];
                x[i] = low + high;
                x[i + step] = low - high;
            }
        }
    }
}

// how a piece of N values is converted and stored
template <typename block, int length, void (*quantize)(const float *, block *)>
struct quantized {
    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float * shared, const int lane, char * row, const int at) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            shared[i * WARP + lane] = x[i];
        }
        __syncwarp();
        for (int b = lane; b < N / length; b += WARP) {
            quantize(shared + b * length, (block *)row + at / length + b);
        }
    }
};

template <typename T>
struct plain {
    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float *, const int lane, char * row, const int at) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            ((T *)row)[at + i * WARP + lane] = ggml_cuda_cast<T>(x[i]);
        }
    }
};

using f32 = float;
using f16 = half;
using bf16 = nv_bfloat16;

// a warp takes a piece of N values of one row
template <int N, bool rotated, typename format>
__global__ void __launch_bounds__(WARP * WARPS_PER_BLOCK) write_rows(const write_args args) {
    __shared__ float shared[WARPS_PER_BLOCK][N];
    const int lane = threadIdx.x;
    const int64_t piece = (int64_t)blockIdx.x * WARPS_PER_BLOCK + threadIdx.y;
    if (piece >= args.n_pieces) {
        return;
    }
    const int64_t row = piece / args.pieces_per_row;
    const int at = (int)(piece % args.pieces_per_row) * N;

    // neither the index nor the center comes from a kernel: they are read while the one before still runs
    const int64_t cell = args.indices[row];
    float center[N / WARP];
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        center[i] = args.center ? args.center[at + i * WARP + lane] : 0.0f;
    }

    ggml_cuda_pdl_sync();
    const float * source = args.rows + row * args.stride + at;
    float x[N / WARP];
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        x[i] = source[i * WARP + lane] * args.scale;
    }
    if (rotated) {
        transform<N>(x, lane);
    }
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        x[i] = args.center ? x[i] - center[i] : x[i];
    }
    format::template store<N>(x, shared[threadIdx.y], lane, args.cache + cell * args.cache_stride, at);
}

template <int N, bool rotated, typename format>
void launch(cudaStream_t stream, write_args args) {
    args.pieces_per_row = args.row_length / N;
    args.n_pieces *= args.pieces_per_row;
    const int64_t n_blocks = (args.n_pieces + WARPS_PER_BLOCK - 1) / WARPS_PER_BLOCK;
    const ggml_cuda_kernel_launch_params params(dim3((unsigned)n_blocks), dim3(WARP, WARPS_PER_BLOCK), (size_t)0,
                                                stream);
    ggml_cuda_kernel_launch(write_rows<N, rotated, format>, params, args);
}

template <typename format>
void launch_for(cudaStream_t stream, int64_t rotation, const write_args & args) {
    switch (rotation) {
        case 0:
            return launch<PLAIN, false, format>(stream, args);
        case 64:
            return launch<64, true, format>(stream, args);
        case 128:
            return launch<128, true, format>(stream, args);
        case 256:
            return launch<256, true, format>(stream, args);
        case 512:
            return launch<512, true, format>(stream, args);
        default:
            GGML_ABORT("rotation of %d values", (int)rotation);
    }
}

static void launch_as(ggml_type type, cudaStream_t stream, int64_t rotation, const write_args & args) {
    switch (type) {
#define KVTUNER_NUMBER(TYPE, name) \
    case GGML_TYPE_##TYPE:         \
        return launch_for<plain<name>>(stream, rotation, args);
#define KVTUNER_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:              \
        return launch_for<quantized<block_##name, size, quantize_f32_##name##_block>>(stream, rotation, args);
#define KVTUNER_OWN_BLOCK(TYPE, name, size)
#include "kvtuner-formats.def"
        default:
            GGML_ABORT("write of %s", ggml_type_name(type));
    }
}

static bool can_do(const kvtuner_write & write) {
    const int64_t n = write.rotation;
    const ggml_tensor * cache = write.stores[0];
    const bool is_length = n == 0 ? cache->ne[0] % PLAIN == 0 : n == 64 || n == 128 || n == 256 || n == 512;
    if (write.stores.size() > 1 || write.blocks) {
        return false;
    }
    switch (cache->type) {
#define KVTUNER_NUMBER(TYPE, name) case GGML_TYPE_##TYPE:
#define KVTUNER_BLOCK(TYPE, name, size) case GGML_TYPE_##TYPE:
#define KVTUNER_OWN_BLOCK(TYPE, name, size)
#include "kvtuner-formats.def"
        return is_length;
        default:
            return false;
    }
}

static void run(cudaStream_t stream, const kvtuner_write & write) {
    const ggml_tensor * cache = write.stores[0];
    write_args args = {};
    args.rows = (const float *)write.rows->data;
    args.stride = write.rows_stride / (int64_t)sizeof(float);
    args.center = write.center ? (const float *)write.center->data : nullptr;
    args.indices = (const int64_t *)cache->src[1]->data;
    args.cache = (char *)cache->data;
    args.cache_stride = (int64_t)cache->nb[1];
    args.row_length = (int)cache->ne[0];
    args.n_pieces = cache->src[0]->ne[1];  // rows, until a launch says what it cuts them into
    args.scale = write.rotation ? 1 / sqrtf(write.rotation) : 1;
    if (args.n_pieces > 0) {
        launch_as(cache->type, stream, write.rotation, args);
    }
}

}  // namespace

kvtuner_writes kvtuner_cuda_writes(const ggml_cgraph & graph) {
    static const bool is_off = [] {
        const char * value = getenv("GGML_CUDA_DISABLE_FUSION");
        return value && atoi(value) != 0;
    }();
    return { graph, is_off ? [](const kvtuner_write &) { return false; } : can_do, /*with_scale =*/false };
}

bool kvtuner_cuda_write(ggml_backend_cuda_context & ctx, const kvtuner_writes & writes, int i) {
    if (const kvtuner_write * write = writes.starting_with(i)) {
        run(ctx.stream(), *write);
    }
    return writes.covers(i);
}
