#include "kvtuner-metal-attention.h"

#include "kvtuner-metal-library.h"
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

// function constants, and the name of the pipeline that they make
struct choices {
    ggml_metal_cv_t constants = ggml_metal_cv_init();
    std::string name = "kvtuner_attention";
    int n = 0;

    ~choices() {
        ggml_metal_cv_free(constants);
    }

    void add(int value) {
        ggml_metal_cv_set_int16(constants, (int16_t)value, FC_KVTUNER_ATTENTION + n++);
        name += "_" + std::to_string(value);
    }

    void add(bool value) {
        ggml_metal_cv_set_bool(constants, value, FC_KVTUNER_ATTENTION + n++);
        name += value ? "_1" : "_0";
    }
};

kvtuner_metal_defines sizes_of(const ggml_tensor * node) {
    return { { "KVTUNER_DK", std::to_string(node->src[1]->ne[0]) },
             { "KVTUNER_DV", std::to_string(node->src[2]->ne[0]) },
             { "KVTUNER_COLUMNS", std::to_string(columns_of_simdgroup(node)) } };
}

ggml_metal_pipeline_with_params pipeline_of(ggml_metal_device_t device, const ggml_tensor * node, int n_parts) {
    const bool has_exact = kvtuner_has_exact(node);
    choices chosen;
    for (int side : { 1, 2, KVTUNER_EXACT_AT, KVTUNER_EXACT_AT + 1 }) {
        const bool is_there = has_exact || side < KVTUNER_EXACT_AT;
        chosen.add((int)(is_there ? *kvtuner_metal_kind_of(node->src[side]->type) : KVTUNER_METAL_F16));
    }
    chosen.add(true);
    chosen.add(node->src[4] != nullptr);
    chosen.add(has_exact);
    chosen.add(kvtuner_has_centers(node));
    chosen.add(n_parts);
    chosen.add(SIMDGROUPS);
    return kvtuner_metal_pipeline(device, FILE_OF_KERNELS, "kvtuner_attention", sizes_of(node), chosen.constants,
                                  chosen.name);
}

// a kernel that gets arguments first
void begin(ggml_metal_encoder_t encoder, ggml_metal_pipeline_with_params pipeline,
           const kvtuner_metal_attention_args & args) {
    GGML_ASSERT(pipeline.pipeline);
    kvtuner_metal_attention_args copy = args;
    ggml_metal_encoder_set_pipeline(encoder, pipeline);
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

// simdgroups have 32 lanes where they multiply matrices
bool has_lanes(ggml_metal_device_t device) {
    return ggml_metal_device_get_props(device)->has_simdgroup_mm;
}

bool is_run(ggml_metal_device_t device, const ggml_tensor * node) {
    return is_fast(node) && has_lanes(device);
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
    begin(encoder, pipeline_of(device, node, n_parts), args);
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
    begin(encoder, kvtuner_metal_pipeline(device, FILE_OF_KERNELS, "kvtuner_add_parts", sizes_of(node)), args);
    ggml_metal_encoder_set_buffer(encoder, parts, 1);
    ggml_metal_encoder_set_buffer(encoder, out, 2);
    ggml_metal_encoder_dispatch_threadgroups(encoder, (int)ggml_nrows(node), 1, 1, LANES, 1, 1);
}

bool kvtuner_metal_attends(const ggml_tensor * node) {
    return node->op == GGML_OP_FLASH_ATTN_EXT && kvtuner_is_marked(node) && is_fast(node);
}

bool kvtuner_metal_has_attention(ggml_metal_device_t device, const ggml_tensor * node) {
    return is_run(device, node) && pipeline_of(device, node, /*n_parts =*/1).pipeline;
}

bool kvtuner_metal_lacks_attention(ggml_metal_device_t device, const ggml_tensor * node) {
    const bool is_copied = has_lanes(device) && kvtuner_metal_needs_copies(node) && kvtuner_metal_can_copy(node);
    return (is_run(device, node) && !kvtuner_metal_has_attention(device, node)) ||
           (is_copied && !kvtuner_metal_has_copies(device, node));
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
