#include "kvtuner-cuda-rows.cuh"

#include "ggml-cuda/common.cuh"
#include "ggml-cuda/fattn.cuh"
#include "kvtuner-cuda-rows-kernels.cuh"

#include "ggml-impl.h"
#include "kvtuner-cache-only.h"
#include "kvtuner-mark.h"

#include <climits>

using namespace kvtuner::cuda;
using kvtuner::side;

namespace {

static int64_t blocks_of_grid(int64_t n_threads) {
    const int64_t n = (n_threads + THREADS - 1) / THREADS;
    GGML_ASSERT(n <= INT_MAX);
    return n;
}

static layout layout_of(const ggml_tensor * t) {
    return { { t->ne[0], t->ne[1], t->ne[2] },
             { (int64_t)t->nb[0], (int64_t)t->nb[1], (int64_t)t->nb[2], (int64_t)t->nb[3] },
             (int)ggml_blck_size(t->type) };
}

template <typename BLOCK>
void copy(cudaStream_t stream, const copy_args & args, bool to_blocks) {
    const int64_t n_threads = to_blocks ? args.n / EACH : args.n / 2;
    if (n_threads == 0) {
        return;
    }
    if (to_blocks) {
        copy_to_blocks<BLOCK><<<blocks_of_grid(n_threads), THREADS, 0, stream>>>(args);
    } else {
        copy_from_blocks<BLOCK><<<blocks_of_grid(n_threads), THREADS, 0, stream>>>(args);
    }
}

template <typename BLOCK, side SIDE>
void set_rows_of(cudaStream_t stream, const set_rows_args & args, ggml_type index) {
    const int64_t n_threads = args.ne[0] * args.ne[1] * args.ne[2] * args.ne[3] / EACH;
    if (n_threads == 0) {
        return;
    }
    if (index == GGML_TYPE_I64) {
        set_rows<BLOCK, SIDE, int64_t><<<blocks_of_grid(n_threads), THREADS, 0, stream>>>(args);
    } else {
        set_rows<BLOCK, SIDE, int32_t><<<blocks_of_grid(n_threads), THREADS, 0, stream>>>(args);
    }
}

static set_rows_args args_of(const ggml_tensor * node) {
    const ggml_tensor *rows = node->src[0], *indices = node->src[1];
    set_rows_args args = {};
    args.rows = (const char *)rows->data;
    args.indices = (const char *)indices->data;
    args.to = (char *)node->data;
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        args.ne[i] = rows->ne[i];
        args.nb[i] = (int64_t)rows->nb[i];
        args.nb_to[i] = (int64_t)node->nb[i];
    }
    for (int i = 0; i < 3; ++i) {
        args.nb_index[i] = (int64_t)indices->nb[i];
    }
    args.n_index[0] = indices->ne[1];
    args.n_index[1] = indices->ne[2];
    return args;
}

static bool is_copy(const ggml_tensor * from, const ggml_tensor * to) {
    if (from->type == to->type) {
        return ggml_is_contiguous(from) && ggml_is_contiguous(to);  // by upstream
    }
    return (from->type == GGML_TYPE_F32 && kvtuner_is_cache_only(to->type)) ||
           (kvtuner_is_cache_only(from->type) && to->type == GGML_TYPE_F32);
}

static bool is_set_rows(const ggml_tensor * node) {
    const ggml_type index = node->src[1]->type;
    return node->src[0]->type == GGML_TYPE_F32 && node->src[0]->nb[0] == sizeof(float) &&
           (index == GGML_TYPE_I64 || index == GGML_TYPE_I32);
}

}  // namespace

bool kvtuner_cuda_supports_op(int device, const ggml_tensor * node) {
    if (ggml_op_is_empty(node->op)) {
        return true;
    }
    switch (node->op) {
        case GGML_OP_GET_ROWS:
            return node->type == GGML_TYPE_F32;
        case GGML_OP_SET_ROWS:
            return is_set_rows(node);
        case GGML_OP_CPY:
        case GGML_OP_DUP:
        case GGML_OP_CONT:
            return is_copy(node->src[0], node);
        case GGML_OP_FLASH_ATTN_EXT:
            return ggml_cuda_flash_attn_ext_supported(device, node);
        default:
            return false;
    }
}

bool kvtuner_cuda_set_rows(ggml_backend_cuda_context & ctx, const ggml_tensor * set_rows) {
    const ggml_type index = set_rows->src[1]->type;
    switch (set_rows->type) {
#define KVTUNER_OWN_BLOCK(TYPE, name, size)                                                                          \
    case GGML_TYPE_##TYPE:                                                                                           \
        kvtuner_is_of_values(set_rows) ? set_rows_of<block_##name, side::V>(ctx.stream(), args_of(set_rows), index)  \
                                       : set_rows_of<block_##name, side::K>(ctx.stream(), args_of(set_rows), index); \
        return true;
#include "kvtuner-formats.def"
        default:
            return false;
    }
}

bool kvtuner_cuda_copy(ggml_backend_cuda_context & ctx, const ggml_tensor * from, const ggml_tensor * to) {
    const bool to_blocks = kvtuner_is_cache_only(to->type);
    if ((to_blocks ? from : to)->type != GGML_TYPE_F32) {
        return false;
    }
    const copy_args args = { (const char *)from->data, (char *)to->data, layout_of(from), layout_of(to),
                             ggml_nelements(from) };
    switch (to_blocks ? to->type : from->type) {
#define KVTUNER_OWN_BLOCK(TYPE, name, size)                \
    case GGML_TYPE_##TYPE:                                 \
        copy<block_##name>(ctx.stream(), args, to_blocks); \
        return true;
#include "kvtuner-formats.def"
        default:
            return false;
    }
}
