#include "kvtuner-metal-attention.h"

#include "kvtuner-metal-sides.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace {

constexpr int MOST_QUERIES = 19;  // as upstream's vector kernels
constexpr int SIMDGROUPS = 4;
constexpr int FEW_TOKENS = 256;  // that one threadgroup takes
constexpr int LANES = 32;
constexpr const char * FILE_OF_KERNELS = "kvtuner-attention.metal";

struct head_size {
    int64_t k, v;
    int most_columns;  // whose queries and sums fit into the registers of a lane
};

constexpr head_size SIZES[] = {
    { 64, 64, 8 },   { 80, 80, 8 },   { 96, 96, 8 },   { 112, 112, 8 },
    { 128, 128, 8 }, { 192, 128, 8 }, { 256, 256, 4 }, { 512, 512, 2 },
};

const head_size * size_of(const ggml_tensor * node) {
    const auto fits = [&](const head_size & s) { return s.k == node->src[1]->ne[0] && s.v == node->src[2]->ne[0]; };
    const auto found = std::find_if(std::begin(SIZES), std::end(SIZES), fits);
    return found == std::end(SIZES) ? nullptr : found;
}

int n_columns(const ggml_tensor * node) {
    return (int)(node->src[0]->ne[1] * (node->src[0]->ne[2] / node->src[1]->ne[2]));
}

// the least power of two that has all, if a simdgroup can
int columns_of_simdgroup(const ggml_tensor * node) {
    int n = 1;
    while (n < n_columns(node) && n < size_of(node)->most_columns) {
        n *= 2;
    }
    return n;
}

kvtuner_metal_attention_args args_of(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    const ggml_tensor * const * exact = node->src + KVTUNER_EXACT_AT;
    const ggml_tensor * centers = node->src[KVTUNER_CENTERS_AT];
    const kvtuner_metal_places places = kvtuner_metal_places_of(node);
    kvtuner_metal_attention_args args = {};
    args.n_query = (int32_t)q->ne[1];
    args.n_head = (int32_t)q->ne[2];
    args.n_head_kv = (int32_t)k->ne[2];
    args.n_stream = (int32_t)q->ne[3];
    args.n_token = (int32_t)k->ne[1];
    args.first_slots_at = places.first_slots;
    args.slot_blocks_at = std::max(0, places.slot_blocks);
    args.cell_blocks_at = std::max(0, places.cell_blocks);
    args.q = kvtuner_metal_strides_of(q);
    args.k = kvtuner_metal_strides_of(k);
    args.v = kvtuner_metal_strides_of(v);
    args.mask = kvtuner_metal_strides_of(mask);
    args.center_block = centers ? centers->nb[1] : 0;
    if (kvtuner_has_exact(node)) {
        args.n_slot = (int32_t)exact[2]->ne[0];
        args.n_exact = places.first_slots < 0 ? args.n_slot : (args.n_slot + args.n_stream - 1) / args.n_stream;
        args.exact_k = kvtuner_metal_strides_of(exact[0]);
        args.exact_v = kvtuner_metal_strides_of(exact[1]);
        args.exact_mask = kvtuner_metal_strides_of(exact[2]);
    }
    memcpy(&args.scale, node->op_params, sizeof(float));
    memcpy(&args.max_bias, node->op_params + 1, sizeof(float));
    memcpy(&args.cap, node->op_params + 2, sizeof(float));
    args.scale = args.cap != 0 ? args.scale / args.cap : args.scale;
    return args;
}

kvtuner_metal_defines sizes_of(const ggml_tensor * node, int columns) {
    return { { "KVTUNER_DK", std::to_string(node->src[1]->ne[0]) },
             { "KVTUNER_DV", std::to_string(node->src[2]->ne[0]) },
             { "KVTUNER_COLUMNS", std::to_string(columns) } };
}

kvtuner_metal_kernel attention_kernel(const ggml_tensor * node, int columns, int n_parts) {
    const bool has_exact = kvtuner_has_exact(node);
    kvtuner_metal_kernel kernel = { FILE_OF_KERNELS,         "kvtuner_attention",  LANES * SIMDGROUPS,
                                    sizes_of(node, columns), FC_KVTUNER_ATTENTION, {} };
    for (int side : { 1, 2, KVTUNER_EXACT_AT, KVTUNER_EXACT_AT + 1 }) {
        const bool is_there = has_exact || side < KVTUNER_EXACT_AT;
        const auto kind = is_there ? *kvtuner_metal_kind_of(node->src[side]->type) : KVTUNER_METAL_F16;
        kernel.constants.push_back((int16_t)kind);
    }
    const bool has_mask = true, has_sinks = node->src[4] != nullptr;
    kernel.constants.insert(kernel.constants.end(), { has_mask, has_sinks, has_exact, kvtuner_has_centers(node),
                                                      (int16_t)n_parts, (int16_t)SIMDGROUPS });
    return kernel;
}

kvtuner_metal_kernel add_parts_kernel(const ggml_tensor * node, int columns) {
    return { FILE_OF_KERNELS, "kvtuner_add_parts", LANES, sizes_of(node, columns) };
}

// a kernel that gets arguments first
void begin(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const kvtuner_metal_kernel & kernel,
           const kvtuner_metal_attention_args & args) {
    kvtuner_metal_attention_args copy = args;
    kvtuner_metal_begin(device, encoder, kernel);
    ggml_metal_encoder_set_bytes(encoder, &copy, sizeof(copy), 0);
}

// sources of a node in the order of the kernel's buffers
constexpr int SOURCES[] = {
    0, 1, 2, 3, 4, KVTUNER_EXACT_AT, KVTUNER_EXACT_AT + 1, KVTUNER_EXACT_AT + 2, KVTUNER_CENTERS_AT, KVTUNER_INTEGERS_AT
};

bool is_fast(const ggml_tensor * node) {
    const ggml_tensor * q = node->src[0];
    return size_of(node) && q->ne[1] <= MOST_QUERIES && kvtuner_metal_has_usual_shape(node) &&
           q->nb[0] == sizeof(float) && q->nb[1] % 16 == 0 && q->nb[2] % 16 == 0 && q->nb[3] % 16 == 0;
}

}  // namespace

void kvtuner_metal_attend(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node,
                          const kvtuner::rotations & around) {
    kvtuner_metal_attention_args args = args_of(node);
    args.q_rotation = (int32_t)around.q_length;
    args.out_rotation = (int32_t)around.out_length;
    const int columns = columns_of_simdgroup(node), groups = (n_columns(node) + columns - 1) / columns;
    const bool is_one_part = args.n_token + args.n_exact <= FEW_TOKENS;
    const int n_parts = is_one_part ? 1 : KVTUNER_METAL_PARTS;
    const ggml_tensor * q = around.q ? around.q : node->src[0];
    const ggml_metal_buffer_id out = kvtuner_metal_buffer(around.out ? around.out : node);
    ggml_metal_buffer_id parts = kvtuner_metal_buffer(node);
    parts.offs += ggml_nbytes(node);  // where upstream has its own
    begin(device, encoder, attention_kernel(node, columns, n_parts), args);
    int slot = 1;
    for (int i : SOURCES) {
        const ggml_tensor * source = i == 0 || !node->src[i] ? q : node->src[i];
        ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(source), slot++);
    }
    ggml_metal_encoder_set_buffer(encoder, is_one_part ? out : parts, slot);
    const size_t bytes = SIMDGROUPS * columns * (node->ne[0] + 2) * sizeof(float);
    ggml_metal_encoder_set_threadgroup_memory_size(encoder, GGML_PAD(bytes, 16), 0);
    ggml_metal_encoder_dispatch_threadgroups(encoder, args.n_head_kv * groups, args.n_stream, n_parts, LANES,
                                             SIMDGROUPS, 1);
    if (is_one_part) {
        return;
    }
    ggml_metal_encoder_memory_barrier(encoder);
    begin(device, encoder, add_parts_kernel(node, columns), args);
    ggml_metal_encoder_set_buffer(encoder, parts, 1);
    ggml_metal_encoder_set_buffer(encoder, out, 2);
    ggml_metal_encoder_dispatch_threadgroups(encoder, (int)ggml_nrows(node), 1, 1, LANES, 1, 1);
}

bool kvtuner_metal_attends(const ggml_tensor * node) {
    return node->op == GGML_OP_FLASH_ATTN_EXT && kvtuner_is_marked(node) && is_fast(node);
}

bool kvtuner_metal_has_attention(ggml_metal_device_t device, const ggml_tensor * node) {
    return is_fast(node) && kvtuner_metal_has_lanes(device);
}

std::vector<kvtuner_metal_kernel> kvtuner_metal_attention_kernels(const ggml_tensor * node) {
    std::vector<kvtuner_metal_kernel> kernels;
    if (is_fast(node)) {
        const int most = size_of(node)->most_columns;
        for (int columns = columns_of_simdgroup(node); columns <= most; columns *= 2) {
            kernels.push_back(attention_kernel(node, columns, /*n_parts =*/1));
            kernels.push_back(attention_kernel(node, columns, KVTUNER_METAL_PARTS));
            kernels.push_back(add_parts_kernel(node, columns));
        }
    }
    if (kvtuner_metal_needs_copies(node) && kvtuner_metal_can_copy(node)) {
        const auto of_copies = kvtuner_metal_copy_kernels(node);
        kernels.insert(kernels.end(), of_copies.begin(), of_copies.end());
    }
    return kernels;
}

bool kvtuner_metal_takes_attention(const ggml_tensor * node) {
    return node->op == GGML_OP_FLASH_ATTN_EXT && kvtuner_is_marked(node) &&
           (is_fast(node) || kvtuner_metal_needs_copies(node));
}

bool kvtuner_metal_supports_attention(const ggml_tensor * node) {
    return is_fast(node) || kvtuner_metal_can_copy(node);
}

ggml_tensor * kvtuner_metal_attention(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_tensor * node,
                                      kvtuner_metal_dense & dense) {
    if (!kvtuner_metal_takes_attention(node)) {
        return node;
    }
    ggml_metal_device_t device = ggml_metal_library_get_device(library);
    if (is_fast(node)) {
        kvtuner_metal_attend(device, encoder, node);
        return nullptr;
    }
    kvtuner_metal_copy(device, encoder, node, dense);
    return &dense.node;
}

size_t kvtuner_metal_attention_extra(const ggml_tensor * node, size_t reserved) {
    if (!kvtuner_metal_takes_attention(node) || is_fast(node)) {
        return 0;
    }
    const size_t needed = kvtuner_metal_bytes_behind(node);
    return needed > reserved ? needed - reserved : 0;
}
