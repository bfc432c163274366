#include "kvtuner-cuda-dense.cuh"

#include "ggml-cuda/fattn.cuh"
#include "kvtuner-cuda-fragments.cuh"

#define KVTUNER_FN inline __device__
#include "kvtuner-decode.h"
#include "kvtuner-mark.h"

using namespace kvtuner::cuda;

namespace {

constexpr int WARPS = 4;
constexpr int TOKENS = 8;         // of a warp
constexpr int MULTIPLE_OF = 256;  // tokens that upstream's kernels like
constexpr int READ_BEHIND = 64;   // rows that they read behind a mask
constexpr int OF_THREAD = 8;      // tokens of a mask: as many as one load takes

struct convert_args {
    const char * from;
    int64_t token, head, stream;  // bytes
    const int * rows;             // of each token; negative for none; null: the token's own
    const half * centers;         // that are added, or null
    int64_t centers_block;
    const int * blocks;
    int64_t blocks_stream;
    int n_tokens, n_rows;  // those behind n_rows, and those without a row, are zeros
    int n_parts;           // of 32 values
    half * to;             // [values, tokens, heads, streams], with the first token
    int64_t to_head, to_stream;
};

// The values that lane t has of 32: four, and those 16 behind. By codes, or where no fragments exist, one by one.
template <ggml_type T>
struct numbers {
    static __device__ void read(const char * row, const int i, const int t, float (&x)[8]) {
        using type = cached<T>;
        pair r[4];
        key_part<T, false, form::EXACT>(row, i, t, r);
        const float d = type::HAS_SCALE ? float_of(load_16(row + i * AT_ONCE / type::SIZE * type::BYTES)) : 1.0f;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float2 even = __half22float2(as_half2(r[2 * k])), odd = __half22float2(as_half2(r[2 * k + 1]));
            x[4 * k] = d * even.x;
            x[4 * k + 1] = d * odd.x;
            x[4 * k + 2] = d * even.y;
            x[4 * k + 3] = d * odd.y;
        }
    }
};

template <typename T>
struct plain_numbers {
    static __device__ void read(const char * row, const int i, const int t, float (&x)[8]) {
        for (int j = 0; j < 8; ++j) {
            x[j] = (float)((const T *)row)[i * AT_ONCE + 4 * t + j % 4 + j / 4 * 16];
        }
    }
};

template <>
struct numbers<GGML_TYPE_F32> : plain_numbers<float> {};

template <>
struct numbers<GGML_TYPE_BF16> : plain_numbers<nv_bfloat16> {};

template <typename BLOCK>
struct numbers_with_least {
    static __device__ void read(const char * row, const int i, const int t, float (&x)[8]) {
        const BLOCK & block = ((const BLOCK *)row)[i];
        for (int j = 0; j < 8; ++j) {
            const int level = kvtuner_level(block, 4 * t + j % 4 + j / 4 * 16);
            x[j] = __low2float(block.dm) * level + __high2float(block.dm);
        }
    }
};

template <>
struct numbers<GGML_TYPE_Q4_1> : numbers_with_least<block_q4_1> {};

template <>
struct numbers<GGML_TYPE_Q5_1> : numbers_with_least<block_q5_1> {};

// four lanes have a token's head
template <ggml_type T>
__global__ void __launch_bounds__(WARPS * WARP_SIZE) convert_tokens(const convert_args a) {
    const int lane = threadIdx.x % WARP_SIZE, t = lane % 4, head = blockIdx.y, stream = blockIdx.z;
    const int token = (blockIdx.x * WARPS + threadIdx.x / WARP_SIZE) * TOKENS + lane / 4;
    ggml_cuda_pdl_sync();
    if (token >= a.n_tokens) {
        return;
    }
    const int row = token >= a.n_rows ? -1 : a.rows ? a.rows[token] : token;
    const int width = a.n_parts * AT_ONCE;
    const char * from = a.from + row * a.token + head * a.head + stream * a.stream;
    half * to = a.to + (int64_t)token * width + head * a.to_head + stream * a.to_stream;
    const half * center = nullptr;
    if (a.centers && row >= 0) {
        center = a.centers + a.blocks[stream * a.blocks_stream + token] * a.centers_block + head * width;
    }
    for (int i = 0; i < a.n_parts; ++i) {
        float x[8] = {};
        if (row >= 0) {
            numbers<T>::read(from, i, t, x);
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int at = i * AT_ONCE + k * 16 + 4 * t;
            if (center) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    x[4 * k + j] += __half2float(center[at + j]);
                }
            }
            *(uint2 *)(to + at) = make_uint2(pair_of(x[4 * k], x[4 * k + 1]), pair_of(x[4 * k + 2], x[4 * k + 3]));
        }
    }
}

struct mask_args {
    const half *cache, *exact;
    int64_t cache_query, cache_stream, exact_query, exact_stream;  // halves
    const int * rows;                                              // of the exact ones; negative for none
    int n_front, n_cache, n_exact, n;                              // the exact ones lie in front
    half * to;                                                     // [n, queries, streams]
};

static __device__ half mask_of(const mask_args & a, const half * cache, const half * exact, const int i) {
    if (i >= a.n_front) {
        return i - a.n_front < a.n_cache ? cache[i - a.n_front] : __float2half(-INFINITY);
    }
    return i < a.n_exact && a.rows[i] >= 0 ? exact[i] : __float2half(-INFINITY);
}

__global__ void join_masks(const mask_args a) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * OF_THREAD, query = blockIdx.y, stream = blockIdx.z;
    ggml_cuda_pdl_sync();
    if (first >= a.n) {
        return;
    }
    const half * cache = a.cache + query * a.cache_query + stream * a.cache_stream;
    const half * exact = a.exact + query * a.exact_query + stream * a.exact_stream;
    half * to = a.to + ((int64_t)stream * gridDim.y + query) * a.n + first;
    const int of_cache = first - a.n_front;
    if (of_cache >= 0 && of_cache + OF_THREAD <= a.n_cache && (uintptr_t)(cache + of_cache) % sizeof(uint4) == 0) {
        *(uint4 *)to = *(const uint4 *)(cache + of_cache);
        return;
    }
    for (int i = 0; i < OF_THREAD; ++i) {
        to[i] = mask_of(a, cache, exact, first + i);
    }
}

template <ggml_type T>
void convert_as(cudaStream_t stream, const convert_args & args, int64_t n_head, int64_t n_stream) {
    const int n = (args.n_tokens + WARPS * TOKENS - 1) / (WARPS * TOKENS);
    if (n > 0) {
        const ggml_cuda_kernel_launch_params params(dim3(n, (unsigned)n_head, (unsigned)n_stream),
                                                    dim3(WARPS * WARP_SIZE), (size_t)0, stream);
        ggml_cuda_kernel_launch(convert_tokens<T>, params, args);
    }
}

static void convert(ggml_type type, cudaStream_t stream, const convert_args & args, int64_t n_head, int64_t n_stream) {
    switch (type) {
#define KVTUNER_NUMBER(TYPE, name) \
    case GGML_TYPE_##TYPE:         \
        return convert_as<GGML_TYPE_##TYPE>(stream, args, n_head, n_stream);
#define KVTUNER_BLOCK(TYPE, name, size) KVTUNER_NUMBER(TYPE, name)
#include "kvtuner-formats.def"
        default:
            GGML_ABORT("attention over %s", ggml_type_name(type));
    }
}

// what a node reads beside its cache
struct beside {
    const ggml_tensor *k, *v, *mask, *centers;
    kvtuner_integers integers;
    int64_t n_slots, n_front, n_all;  // of them, padded, and with the cache, padded
};

static beside beside_of(const ggml_tensor * node) {
    const ggml_tensor * const * exact = node->src + KVTUNER_EXACT_AT;
    beside b = { exact[0], exact[1], exact[2], node->src[KVTUNER_CENTERS_AT], kvtuner_integers_of(node), 0, 0, 0 };
    b.n_slots = b.mask ? b.mask->ne[0] : 0;
    b.n_front = GGML_PAD(b.n_slots, OF_THREAD);
    b.n_all = GGML_PAD(b.n_front + node->src[1]->ne[1], MULTIPLE_OF);
    return b;
}

// All tokens of one side, with the centers of keys. Exact rows lie in front: at the end upstream's kernels skip tokens
// that no query sees, which in a prefill are half of it.
static void convert_side(cudaStream_t stream, const ggml_tensor * cache, const ggml_tensor * exact, const beside & b,
                         bool is_key, half * to) {
    convert_args args = {};
    args.from = (const char *)cache->data;
    args.token = (int64_t)cache->nb[1];
    args.head = (int64_t)cache->nb[2];
    args.stream = (int64_t)cache->nb[3];
    // zeros behind it, too: a masked value that is no number would be seen
    args.n_tokens = (int)(b.n_all - b.n_front);
    args.n_rows = (int)cache->ne[1];
    args.n_parts = (int)cache->ne[0] / AT_ONCE;
    args.to = to + b.n_front * cache->ne[0];
    args.to_head = b.n_all * cache->ne[0];
    args.to_stream = args.to_head * cache->ne[2];
    if (is_key && b.centers) {
        args.centers = (const half *)b.centers->data;
        args.centers_block = (int64_t)b.centers->nb[1] / 2;
        args.blocks = b.integers.cell_blocks;
        args.blocks_stream = cache->ne[1];
    }
    convert(cache->type, stream, args, cache->ne[2], cache->ne[3]);
    if (!exact) {
        return;
    }
    args.from = (const char *)exact->data;
    args.token = (int64_t)exact->nb[1];
    args.head = (int64_t)exact->nb[2];
    args.stream = 0;
    args.rows = b.integers.rows;
    args.blocks = b.integers.slot_blocks;
    args.blocks_stream = 0;
    args.n_tokens = (int)b.n_front;
    args.n_rows = (int)b.n_slots;
    args.to = to;
    convert(exact->type, stream, args, cache->ne[2], cache->ne[3]);
}

static void join(cudaStream_t stream, const ggml_tensor * mask, const beside & b, half * to) {
    mask_args args = {};
    args.cache = (const half *)mask->data;
    args.cache_query = (int64_t)mask->nb[1] / 2;
    args.cache_stream = (int64_t)mask->nb[3] / 2;
    args.n_front = (int)b.n_front;
    args.n_cache = (int)mask->ne[0];
    args.n = (int)b.n_all;
    args.to = to;
    if (b.mask) {
        args.exact = (const half *)b.mask->data;
        args.exact_query = (int64_t)b.mask->nb[1] / 2;
        args.exact_stream = (int64_t)b.mask->nb[3] / 2;
        args.n_exact = (int)b.n_slots;
        args.rows = b.integers.rows;
    }
    const ggml_cuda_kernel_launch_params params(
            dim3((unsigned)(b.n_all / OF_THREAD + 255) / 256, (unsigned)mask->ne[1], (unsigned)mask->ne[3]), dim3(256),
            (size_t)0, stream);
    ggml_cuda_kernel_launch(join_masks, params, args);
}

// the mask of the cache, with that of exact rows in front
static half * joined_mask(ggml_backend_cuda_context & ctx, const ggml_tensor * node, const beside & b,
                          kept_masks & masks) {
    const ggml_tensor * mask = node->src[3];
    if (!b.mask && b.n_all == mask->ne[0] && ggml_is_contiguous(mask)) {
        return (half *)mask->data;
    }
    const size_t n = b.n_all * (mask->ne[1] * mask->ne[3] + READ_BEHIND);
    return (half *)masks.of(kept_masks::what::JOINED, mask, b.mask, n * sizeof(half),
                            [&](char * to) { join(ctx.stream(), mask, b, (half *)to); });
}

static ggml_tensor f16_tensor(const ggml_tensor * like, const int64_t (&ne)[4], void * data) {
    ggml_tensor t = *like;
    t.type = GGML_TYPE_F16;
    t.view_src = nullptr;
    t.view_offs = 0;
    t.data = data;
    size_t stride = sizeof(half);
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        t.ne[i] = ne[i];
        t.nb[i] = stride;
        stride *= ne[i];
    }
    return t;
}

// the node over copies, which upstream's kernels take
struct dense_node {
    ggml_tensor k, v, mask, node;

    dense_node(const ggml_tensor * of, const beside & b, void * k_data, void * v_data, void * mask_data) {
        const ggml_tensor *cache_k = of->src[1], *cache_v = of->src[2], *cache_mask = of->src[3];
        k = f16_tensor(cache_k, { cache_k->ne[0], b.n_all, cache_k->ne[2], cache_k->ne[3] }, k_data);
        v = f16_tensor(cache_v, { cache_v->ne[0], b.n_all, cache_v->ne[2], cache_v->ne[3] }, v_data);
        mask = f16_tensor(cache_mask, { b.n_all, cache_mask->ne[1], cache_mask->ne[2], cache_mask->ne[3] }, mask_data);
        node = *of;
        node.src[1] = &k;
        node.src[2] = &v;
        node.src[3] = &mask;
        for (int i = KVTUNER_EXACT_AT; i < GGML_MAX_SRC; ++i) {
            node.src[i] = nullptr;
        }
        node.op_params[KVTUNER_MARK_AT] = 0;
    }
};

// upstream's kernels read every type but ours, and nothing beside the cache
static bool needs_copies(const ggml_tensor * node) {
    const auto is_ours = [](ggml_type type) {
        return type == GGML_TYPE_IQ4_NL || type == GGML_TYPE_Q3_NL || type == GGML_TYPE_Q2_NL;
    };
    return kvtuner_has_exact(node) || kvtuner_has_centers(node) || is_ours(node->src[1]->type) ||
           is_ours(node->src[2]->type);
}

// a copy is made in a fraction of the time that upstream's kernels take to convert a cache
static bool gains_by_copies(const ggml_tensor * node) {
    return ggml_is_quantized(node->src[1]->type) || ggml_is_quantized(node->src[2]->type);
}

static bool can_be_copied(const ggml_tensor * node) {
    const ggml_tensor *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    return k->ne[0] % AT_ONCE == 0 && v->ne[0] % AT_ONCE == 0 && mask && mask->ne[0] == k->ne[1] && mask->ne[2] == 1;
}

}  // namespace

namespace kvtuner::cuda {

bool runs_dense(int device, const ggml_tensor * node) {
    if (!needs_copies(node)) {
        ggml_tensor plain = *node;
        plain.op_params[KVTUNER_MARK_AT] = 0;
        return ggml_cuda_flash_attn_ext_supported(device, &plain);
    }
    if (!can_be_copied(node)) {
        return false;
    }
    const dense_node copy(node, beside_of(node), nullptr, nullptr, nullptr);
    return ggml_cuda_flash_attn_ext_supported(device, &copy.node);
}

bool attend_dense(ggml_backend_cuda_context & ctx, ggml_tensor * node, kept_masks & masks) {
    if (!needs_copies(node) && !(gains_by_copies(node) && can_be_copied(node))) {
        return false;
    }
    const ggml_tensor *k = node->src[1], *v = node->src[2];
    const beside b = beside_of(node);
    half * mask = joined_mask(ctx, node, b, masks);
    ggml_cuda_pool_alloc<half> k_copy(ctx.pool(), k->ne[0] * b.n_all * k->ne[2] * k->ne[3]);
    ggml_cuda_pool_alloc<half> v_copy(ctx.pool(), v->ne[0] * b.n_all * v->ne[2] * v->ne[3]);
    convert_side(ctx.stream(), k, b.k, b, true, k_copy.ptr);
    convert_side(ctx.stream(), v, b.v, b, false, v_copy.ptr);
    dense_node copy(node, b, k_copy.ptr, v_copy.ptr, mask);
    ggml_cuda_flash_attn_ext(ctx, &copy.node);
    return true;
}

}  // namespace kvtuner::cuda
