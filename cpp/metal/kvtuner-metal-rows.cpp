#include "kvtuner-metal-rows.h"

#include "kvtuner-cache-only.h"
#include "kvtuner-mark.h"
#include "kvtuner-metal-args.h"
#include "kvtuner-metal-attention.h"
#include "kvtuner-metal-types.h"
#include "kvtuner-metal-write.h"
#include "kvtuner-metal.h"

#include "ggml-impl.h"

#include <algorithm>
#include <string>
#include <vector>

namespace {

constexpr int THREADS = 128;  // of a threadgroup
constexpr int SIMDGROUPS = THREADS / 32;

bool is_copy(const ggml_tensor * node) {
    return node->op == GGML_OP_CPY || node->op == GGML_OP_DUP || node->op == GGML_OP_CONT;
}

bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
}

// upstream writes it and does not read it
bool is_copy_of_iq4_nl(const ggml_tensor * node) {
    return is_copy(node) && node->src[0]->type == GGML_TYPE_IQ4_NL && is_float(node->type);
}

bool is_plain(const ggml_tensor * t) {
    return t->nb[0] == ggml_type_size(t->type);
}

kvtuner_metal_kernel kernel_of(const char * name, ggml_type block, ggml_type number) {
    return { "kvtuner-rows.metal",
             name,
             THREADS,
             { { "KVTUNER_BLOCK", kvtuner_metal_name(block) },
               { "KVTUNER_LENGTH", std::to_string(ggml_blck_size(block)) },
               { "KVTUNER_FLOAT", kvtuner_metal_name(number) } } };
}

void get_rows(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node) {
    const ggml_tensor *from = node->src[0], *indices = node->src[1];
    kvtuner_metal_get_rows_args args = {};
    args.n = (int32_t)node->ne[0];
    for (int i = 0; i < 3; ++i) {
        args.from_stride[i] = from->nb[i + 1];
        args.index_stride[i] = indices->nb[i];
        args.to_stride[i] = node->nb[i + 1];
    }
    kvtuner_metal_begin(device, encoder, kernel_of("kvtuner_get_rows", from->type, node->type));
    ggml_metal_encoder_set_bytes(encoder, &args, sizeof(args), 0);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(from), 1);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(indices), 2);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(node), 3);
    ggml_metal_encoder_dispatch_threadgroups(encoder, (int)indices->ne[0], (int)indices->ne[1], (int)indices->ne[2],
                                             (int)std::min<int64_t>(node->ne[0], THREADS), 1, 1);
}

void copy(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * from, const ggml_tensor * to) {
    const bool to_blocks = ggml_is_quantized(to->type);
    kvtuner_metal_copy_args args = {};
    args.n = ggml_nelements(from);
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        args.from_stride[i] = from->nb[i];
        args.to_stride[i] = to->nb[i];
    }
    std::copy_n(from->ne, 3, args.from_ne);
    std::copy_n(to->ne, 3, args.to_ne);
    const ggml_type block = to_blocks ? to->type : from->type;
    const int64_t each = to_blocks ? SIMDGROUPS * ggml_blck_size(block) : THREADS;  // values of a threadgroup
    kvtuner_metal_begin(
            device, encoder,
            kernel_of(to_blocks ? "kvtuner_copy_to" : "kvtuner_copy_from", block, to_blocks ? from->type : to->type));
    ggml_metal_encoder_set_bytes(encoder, &args, sizeof(args), 0);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(from), 1);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(to), 2);
    ggml_metal_encoder_dispatch_threadgroups(encoder, (int)((args.n + each - 1) / each), 1, 1, THREADS, 1, 1);
}

// those that shift keys of a type
std::vector<kvtuner_metal_kernel> shift_kernels(ggml_type type) {
    std::vector<kvtuner_metal_kernel> kernels;
    if (kvtuner_is_cache_only(type) || type == GGML_TYPE_IQ4_NL) {
        kernels.push_back(kernel_of("kvtuner_copy_from", type, GGML_TYPE_F32));
    }
    if (kvtuner_is_cache_only(type)) {
        kernels.push_back(kernel_of("kvtuner_copy_to", type, GGML_TYPE_F32));
    }
    return kernels;
}

// all that graphs may run over the caches of a node
std::vector<kvtuner_metal_kernel> kernels_of(const ggml_tensor * node) {
    std::vector<kvtuner_metal_kernel> kernels = shift_kernels(node->src[1]->type);
    const auto add = [&](const std::vector<kvtuner_metal_kernel> & more) {
        kernels.insert(kernels.end(), more.begin(), more.end());
    };
    for (int side : { 0, 1 }) {
        const ggml_tensor * cache = node->src[1 + side];
        const ggml_tensor * exact = node->src[KVTUNER_EXACT_AT + side];
        if (kvtuner_metal_name(cache->type)) {
            add(kvtuner_metal_write_kernels(cache->type, exact ? exact->type : GGML_TYPE_F16, cache->ne[0]));
        }
    }
    add(kvtuner_metal_attention_kernels(node));
    return kernels;
}

}  // namespace

const char * kvtuner_metal_name(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return "float";
        case GGML_TYPE_F16:
            return "half";
        case GGML_TYPE_BF16:
            return "bfloat";
#define KVTUNER_BLOCK(TYPE, name, size) \
    case GGML_TYPE_##TYPE:              \
        return "block_" #name;
#include "kvtuner-formats.def"
        default:
            return nullptr;
    }
}

bool kvtuner_metal_takes(const ggml_tensor * node) {
    return kvtuner_has_cache_only_type(node) || is_copy_of_iq4_nl(node) || kvtuner_metal_takes_attention(node);
}

bool kvtuner_metal_supports_op(const ggml_tensor * node) {
    const ggml_tensor * from = node->src[0];
    if (ggml_op_is_empty(node->op)) {
        return true;
    }
    switch (node->op) {
        case GGML_OP_FLASH_ATTN_EXT:
            return kvtuner_metal_takes_attention(node) && kvtuner_metal_supports_attention(node);
        case GGML_OP_GET_ROWS:
            return node->type == GGML_TYPE_F32 && kvtuner_is_cache_only(from->type);
        case GGML_OP_SET_ROWS:
            return kvtuner_is_cache_only(node->type) && from->type == GGML_TYPE_F32 && is_plain(from) &&
                   (node->src[1]->type == GGML_TYPE_I64 || node->src[1]->type == GGML_TYPE_I32);
        case GGML_OP_CPY:
        case GGML_OP_DUP:
        case GGML_OP_CONT:
            return is_float(node->type) || (from->type == GGML_TYPE_F32 && kvtuner_is_cache_only(node->type));
        default:
            return false;
    }
}

bool kvtuner_metal_run(ggml_metal_library_t library, ggml_metal_encoder_t encoder, const ggml_tensor * node) {
    if (!kvtuner_metal_takes(node) || node->op == GGML_OP_FLASH_ATTN_EXT) {
        return false;
    }
    ggml_metal_device_t device = ggml_metal_library_get_device(library);
    if (node->op == GGML_OP_GET_ROWS) {
        get_rows(device, encoder, node);
    } else if (node->op == GGML_OP_SET_ROWS) {
        kvtuner_metal_set_rows(device, encoder, node);
    } else {
        copy(device, encoder, node->src[0], node);
    }
    return true;
}

const char * kvtuner_metal_kernels_problem(ggml_metal_device_t device, const ggml_tensor * node) {
    static thread_local std::string problem;
    const bool is_bfloat = node->src[1]->type == GGML_TYPE_BF16 || node->src[2]->type == GGML_TYPE_BF16;
    if (is_bfloat && !ggml_metal_device_get_props(device)->has_bfloat) {
        problem = std::string(ggml_metal_device_get_props(device)->name) + " has no bfloat";
        return problem.c_str();
    }
    const auto kernels = kvtuner_metal_has_lanes(device) ? kernels_of(node) : std::vector<kvtuner_metal_kernel>();
    for (const kvtuner_metal_kernel & kernel : kernels) {
        problem = kvtuner_metal_problem(device, kernel);
        if (!problem.empty()) {
            return problem.c_str();
        }
    }
    return nullptr;
}
