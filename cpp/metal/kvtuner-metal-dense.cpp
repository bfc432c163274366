#include "kvtuner-metal-dense.h"

#include "kvtuner-metal-sides.h"

#include "ggml-metal-ops.h"

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t MULTIPLE_OF = 64;  // tokens that upstream's kernels take at once: fewer they would copy once more
constexpr size_t ALIGNMENT = 64;
constexpr int THREADS = 256;
constexpr int HINT_AT = 4;  // of the parameters of a node: how many tokens a query sees at most, or 0
constexpr const char * FILE_OF_KERNELS = "kvtuner-dense.metal";

// head sizes of upstream's kernels over f16
constexpr int64_t SIZES[][2] = {
    { 32, 32 },   { 40, 40 },   { 48, 48 },   { 64, 64 },   { 72, 72 },   { 80, 80 },   { 96, 64 },   { 96, 96 },
    { 112, 112 }, { 128, 128 }, { 192, 128 }, { 192, 192 }, { 256, 256 }, { 320, 256 }, { 512, 512 }, { 576, 512 },
};

// the tokens of copies: slots in front, since upstream's kernels skip what no query sees, which is at the end
struct counts {
    int64_t n_slot, n_all;

    explicit counts(const ggml_tensor * node) {
        n_slot = kvtuner_has_exact(node) ? node->src[KVTUNER_EXACT_AT + 2]->ne[0] : 0;
        n_all = GGML_PAD(n_slot + node->src[1]->ne[1], MULTIPLE_OF);
    }

    bool is_cache_alone(const ggml_tensor * node) const {
        return n_all == node->src[1]->ne[1];
    }
};

bool is_copied(const ggml_tensor * node, int source) {
    const bool is_cache_alone = counts(node).is_cache_alone(node);
    return !is_cache_alone || node->src[source]->type != GGML_TYPE_F16 || (source == 1 && kvtuner_has_centers(node));
}

// of halves, behind each other
ggml_tensor copy_like(const ggml_tensor * like, int axis, int64_t n) {
    ggml_tensor t = *like;
    t.type = GGML_TYPE_F16;
    t.view_src = nullptr;
    t.view_offs = 0;
    t.ne[axis] = n;
    t.nb[0] = sizeof(ggml_fp16_t);
    for (int i = 1; i < GGML_MAX_DIMS; ++i) {
        t.nb[i] = t.nb[i - 1] * t.ne[i - 1];
    }
    return t;
}

// The node over copies, which lie behind its result and what upstream has there. Gives the bytes of all that.
size_t set_node(const ggml_tensor * of, kvtuner_metal_dense & dense) {
    const counts n(of);
    ggml_tensor & node = dense.node = *of;
    ggml_tensor * const copies[] = { &dense.k, &dense.v, &dense.mask };
    for (int i = 1; i <= KVTUNER_MASK_AT; ++i) {
        const bool is_mask = i == KVTUNER_MASK_AT;
        *copies[i - 1] = is_copied(of, i) ? copy_like(of->src[i], is_mask ? 0 : 1, n.n_all) : *of->src[i];
        node.src[i] = copies[i - 1];
    }
    std::fill(node.src + KVTUNER_EXACT_AT, node.src + GGML_MAX_SRC, nullptr);
    node.op_params[KVTUNER_MARK_AT] = 0;
    node.op_params[HINT_AT] = 0;  // with it upstream has lists of tokens where copies lie
    size_t behind = ggml_metal_op_flash_attn_ext_extra_pad(&node) + ggml_metal_op_flash_attn_ext_extra_blk(&node) +
                    ggml_metal_op_flash_attn_ext_extra_tmp(&node);
    for (int i = 1; i <= KVTUNER_MASK_AT; ++i) {
        if (is_copied(of, i)) {
            behind = GGML_PAD(behind, ALIGNMENT);
            copies[i - 1]->buffer = of->view_src ? of->view_src->buffer : of->buffer;
            // a node may have no memory yet
            copies[i - 1]->data = (void *)((uintptr_t)of->data + ggml_nbytes(of) + behind);
            behind += ggml_nbytes(copies[i - 1]);
        }
    }
    return behind;
}

// that copies a side of the cache, or its slots
kvtuner_metal_kernel halves_of(const ggml_tensor * node, int source, bool is_exact) {
    const ggml_tensor * from = node->src[is_exact ? KVTUNER_EXACT_AT + source - 1 : source];
    const bool has_centers = source == 1 && kvtuner_has_centers(node);
    return { FILE_OF_KERNELS,  "kvtuner_halves",
             THREADS,          {},
             FC_KVTUNER_DENSE, { (int16_t)*kvtuner_metal_kind_of(from->type), is_exact, has_centers } };
}

kvtuner_metal_kernel masks_kernel() {
    return { FILE_OF_KERNELS, "kvtuner_masks", THREADS, {} };
}

// n tokens of the copy of a side, the first of them at `to`: of the cache, or slots
void copy_tokens(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node, int source,
                 bool is_exact, const ggml_tensor & copy, int64_t n) {
    const ggml_tensor * from = node->src[is_exact ? KVTUNER_EXACT_AT + source - 1 : source];
    const ggml_tensor *centers = node->src[KVTUNER_CENTERS_AT], *integers = node->src[KVTUNER_INTEGERS_AT];
    const kvtuner_metal_places places = kvtuner_metal_places_of(node);
    const bool has_centers = source == 1 && centers;
    kvtuner_metal_halves_args args = {};
    args.n_quad = (int32_t)copy.ne[0] / 4;
    args.n_to = (int32_t)n;
    args.n_from = (int32_t)(is_exact ? n : from->ne[1]);
    args.rows_at = std::max(0, places.rows);
    args.blocks_at = std::max(0, is_exact ? places.slot_blocks : places.cell_blocks);
    args.blocks_of_stream = is_exact ? 0 : (int32_t)from->ne[1];
    args.center_block = has_centers ? centers->nb[1] : 0;
    args.from = kvtuner_metal_strides_of(from);
    args.to_head = copy.nb[2];
    args.to_stream = copy.nb[3];
    ggml_metal_buffer_id to = kvtuner_metal_buffer(&copy);
    to.offs += is_exact ? 0 : (copy.ne[1] - n) * copy.nb[1];
    kvtuner_metal_begin(device, encoder, halves_of(node, source, is_exact));
    ggml_metal_encoder_set_bytes(encoder, &args, sizeof(args), 0);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(from), 1);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(has_centers ? centers : from), 2);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(integers ? integers : from), 3);
    ggml_metal_encoder_set_buffer(encoder, to, 4);
    ggml_metal_encoder_dispatch_threadgroups(encoder, (int)((n * args.n_quad + THREADS - 1) / THREADS), (int)copy.ne[2],
                                             (int)copy.ne[3], THREADS, 1, 1);
}

void join_masks(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node,
                const ggml_tensor & copy) {
    const ggml_tensor *cache = node->src[KVTUNER_MASK_AT], *exact = node->src[KVTUNER_EXACT_AT + 2];
    const ggml_tensor * integers = node->src[KVTUNER_INTEGERS_AT];
    kvtuner_metal_masks_args args = {};
    args.n_query = (int32_t)cache->ne[1];
    args.n_slot = (int32_t)counts(node).n_slot;
    args.n_token = (int32_t)cache->ne[0];
    args.n_all = (int32_t)copy.ne[0];
    args.rows_at = std::max(0, kvtuner_metal_places_of(node).rows);
    args.cache = kvtuner_metal_strides_of(cache);
    args.exact = kvtuner_metal_strides_of(exact ? exact : cache);
    kvtuner_metal_begin(device, encoder, masks_kernel());
    ggml_metal_encoder_set_bytes(encoder, &args, sizeof(args), 0);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(cache), 1);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(exact ? exact : cache), 2);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(integers ? integers : cache), 3);
    ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(&copy), 4);
    ggml_metal_encoder_dispatch_threadgroups(encoder, (args.n_all + THREADS - 1) / THREADS, args.n_query,
                                             (int)copy.ne[3], THREADS, 1, 1);
}

// that upstream's kernels read in both sides
bool is_read_by_upstream(ggml_type type) {
    return type != GGML_TYPE_IQ4_NL && type != GGML_TYPE_Q3_NL && type != GGML_TYPE_Q2_NL;
}

}  // namespace

bool kvtuner_metal_needs_copies(const ggml_tensor * node) {
    return kvtuner_has_exact(node) || kvtuner_has_centers(node) || node->src[1]->type != node->src[2]->type ||
           !is_read_by_upstream(node->src[1]->type);
}

bool kvtuner_metal_can_copy(const ggml_tensor * node) {
    const auto fits = [&](const int64_t(&size)[2]) {
        return size[0] == node->src[1]->ne[0] && size[1] == node->src[2]->ne[0];
    };
    return kvtuner_metal_has_usual_shape(node) && std::any_of(std::begin(SIZES), std::end(SIZES), fits);
}

std::vector<kvtuner_metal_kernel> kvtuner_metal_copy_kernels(const ggml_tensor * node) {
    std::vector<kvtuner_metal_kernel> kernels = { masks_kernel() };
    for (int source : { 1, 2 }) {
        kernels.push_back(halves_of(node, source, /*is_exact =*/false));
        if (kvtuner_has_exact(node)) {
            kernels.push_back(halves_of(node, source, /*is_exact =*/true));
        }
    }
    return kernels;
}

void kvtuner_metal_copy(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * node,
                        kvtuner_metal_dense & dense) {
    const counts n(node);
    set_node(node, dense);
    for (int source : { 1, 2 }) {
        const ggml_tensor & copy = source == 1 ? dense.k : dense.v;
        if (is_copied(node, source)) {
            copy_tokens(device, encoder, node, source, /*is_exact =*/false, copy, n.n_all - n.n_slot);
        }
        if (n.n_slot > 0) {
            copy_tokens(device, encoder, node, source, /*is_exact =*/true, copy, n.n_slot);
        }
    }
    if (is_copied(node, KVTUNER_MASK_AT)) {
        join_masks(device, encoder, node, dense.mask);
    }
    ggml_metal_encoder_memory_barrier(encoder);
}

size_t kvtuner_metal_bytes_behind(const ggml_tensor * node) {
    kvtuner_metal_dense dense;
    return set_node(node, dense);
}
