#include "kvtuner-cuda-write.cuh"

#include "ggml-cuda/common.cuh"
#include "ggml-cuda/convert.cuh"
#include "ggml-cuda/cpy-utils.cuh"
#include "kvtuner-cuda-write-rows.cuh"

#include "ggml-impl.h"
#include "kvtuner-mark.h"

#include <algorithm>

using namespace kvtuner::cuda;
using kvtuner::side;

namespace {

constexpr int PLAIN = 32;  // values that a warp takes where nothing is rotated and the format does not ask for more

// how a piece of N values is converted and stored
template <typename block, int length, void (*quantize)(const float *, block *)>
struct quantized {
    static constexpr int unit = PLAIN;

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

// value `lane` of a block of as many as a warp has lanes, by all of them: as upstream's functions, in their words
inline __device__ void put_value(const float x, const int lane, block_q8_0 & y) {
    const float amax = warp_reduce_max(fabsf(x));
    const float d = amax / ((1 << 7) - 1);
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = d;
    }
    y.qs[lane] = roundf(x * id);
}

inline __device__ void put_value(const float x, const int lane, block_q4_0 & y) {
    const float amax = warp_reduce_max(fabsf(x));
    const unsigned first = __ffs(__ballot_sync(ALL_THREADS, fabsf(x) == amax)) - 1;
    const float of_first = __shfl_sync(ALL_THREADS, x, first);
    const float vmax = amax > 0 ? of_first : 0.0f;
    const float d = vmax / -8;
    const float id = d ? 1.0f / d : 0.0f;
    if (lane == 0) {
        y.d = d;
    }
    const int code = min(15, (int8_t)(x * id + 8.5f));
    const int other = __shfl_xor_sync(ALL_THREADS, code, QK4_0 / 2);
    if (lane < QK4_0 / 2) {
        y.qs[lane] = (uint8_t)code | (uint8_t)other << 4;
    }
}

template <typename block>
struct by_all_lanes {
    static constexpr int unit = PLAIN;

    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float *, const int lane, char * row, const int at) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            put_value(x[i], lane, ((block *)row)[at / WARP + i]);
        }
    }
};

// the format of upstream's struct block_<name>
template <typename block, int length, void (*quantize)(const float *, block *)>
struct format_of {
    using type = quantized<block, length, quantize>;
};

template <void (*quantize)(const float *, block_q8_0 *)>
struct format_of<block_q8_0, QK8_0, quantize> {
    using type = by_all_lanes<block_q8_0>;
};

template <void (*quantize)(const float *, block_q4_0 *)>
struct format_of<block_q4_0, QK4_0, quantize> {
    using type = by_all_lanes<block_q4_0>;
};

template <typename T>
struct plain {
    static constexpr int unit = PLAIN;

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
            return launch<format::unit, false, format>(stream, args);
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

static void launch_as(const ggml_tensor * cache, cudaStream_t stream, int64_t rotation, const write_args & args) {
    switch (cache->type) {
#define KVTUNER_NUMBER(TYPE, name) \
    case GGML_TYPE_##TYPE:         \
        return launch_for<plain<name>>(stream, rotation, args);
#define KVTUNER_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:              \
        return launch_for<format_of<block_##name, size, quantize_f32_##name##_block>::type>(stream, rotation, args);
#define KVTUNER_OWN_BLOCK(TYPE, name, size)                                                                      \
    case GGML_TYPE_##TYPE:                                                                                       \
        return kvtuner_is_of_values(cache) ? launch_for<low_bits<block_##name, side::V>>(stream, rotation, args) \
                                           : launch_for<low_bits<block_##name, side::K>>(stream, rotation, args);
#include "kvtuner-formats.def"
        default:
            GGML_ABORT("write of %s", ggml_type_name(cache->type));
    }
}

// whether upstream does this step and a product after it in one: a write that begins with that product would be missed
static bool is_done_with_product(const ggml_tensor * rows) {
    return rows->op == GGML_OP_MUL || rows->op == GGML_OP_MUL_MAT || rows->op == GGML_OP_UNARY;
}

// where the rows go, and where they go as they are, or null; of two stores of halves either may be either
struct targets {
    const ggml_tensor *cache, *exact;
};

static targets targets_of(const kvtuner_write & write) {
    if (write.stores.size() < 2) {
        return { write.stores[0], nullptr };
    }
    const bool is_first = write.stores[0]->type == GGML_TYPE_F16;
    return { write.stores[is_first ? 1 : 0], write.stores[is_first ? 0 : 1] };
}

static bool can_do(const kvtuner_write & write) {
    const int64_t n = write.rotation;
    const auto [cache, exact] = targets_of(write);
    const int64_t unit = std::max<int64_t>(PLAIN, ggml_blck_size(cache->type));
    const bool is_length = n == 0 ? cache->ne[0] % unit == 0 : n == 64 || n == 128 || n == 256 || n == 512;
    if ((exact && exact->type != GGML_TYPE_F16) || (write.scale && is_done_with_product(write.rows))) {
        return false;
    }
    switch (cache->type) {
#define KVTUNER_NUMBER(TYPE, name) case GGML_TYPE_##TYPE:
#define KVTUNER_BLOCK(TYPE, name, size) case GGML_TYPE_##TYPE:
#include "kvtuner-formats.def"
        return is_length;
        default:
            return false;
    }
}

static void run(cudaStream_t stream, const kvtuner_write & write) {
    const auto [cache, exact] = targets_of(write);
    write_args args = {};
    args.rows = (const float *)write.rows->data;
    args.stride = write.rows_stride / (int64_t)sizeof(float);
    args.factors = write.scale ? (const float *)write.scale->data : nullptr;
    args.center = write.center && !write.blocks ? (const float *)write.center->data : nullptr;
    args.centers = write.blocks ? (const half *)write.center->data : nullptr;
    args.blocks = write.blocks ? (const int32_t *)write.blocks->data : nullptr;
    args.indices = (const int64_t *)cache->src[1]->data;
    args.cache = (char *)cache->data;
    args.cache_stride = (int64_t)cache->nb[1];
    if (exact) {
        args.exact_indices = (const int64_t *)exact->src[1]->data;
        args.exact = (char *)exact->data;
        args.exact_stride = (int64_t)exact->nb[1];
    }
    args.row_length = (int)cache->ne[0];
    args.n_pieces = cache->src[0]->ne[1];  // rows, until a launch says what it cuts them into
    args.scale = write.rotation ? 1 / sqrtf(write.rotation) : 1;
    if (args.n_pieces > 0) {
        launch_as(cache, stream, write.rotation, args);
    }
}

}  // namespace

kvtuner_writes kvtuner_cuda_writes(const ggml_cgraph & graph, bool is_off) {
    return { graph, is_off ? [](const kvtuner_write &) { return false; } : can_do, /*with_scale =*/true };
}

void kvtuner_cuda_write(ggml_backend_cuda_context & ctx, const kvtuner_writes & writes, int i) {
    if (const kvtuner_write * write = writes.starting_with(i)) {
        run(ctx.stream(), *write);
    }
}
