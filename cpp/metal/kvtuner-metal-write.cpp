#include "kvtuner-metal-write.h"

#include "kvtuner-cache-only.h"
#include "kvtuner-mark.h"
#include "kvtuner-metal-args.h"
#include "kvtuner-metal-types.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr int PLAIN = 32;  // values that a simdgroup takes where nothing is rotated and the type does not ask for more
constexpr int LONGEST = 512;   // rotation
constexpr int LANES = 32;      // of a simdgroup
constexpr int SIMDGROUPS = 4;  // of a threadgroup

// where rows go: to the cache and beside it, or null; either may be either
struct targets {
    const ggml_tensor *cache, *exact;
};

targets targets_of(const kvtuner_write & write) {
    return { write.stores[0], write.stores.size() < 2 ? nullptr : write.stores[1] };
}

// the values of a row that a simdgroup takes
int64_t piece_of(ggml_type type, int64_t rotation) {
    return rotation ? rotation : std::max<int64_t>(PLAIN, ggml_blck_size(type));
}

int64_t piece_of(const kvtuner_write & write) {
    return piece_of(targets_of(write).cache->type, write.rotation);
}

// whether rows can go there in pieces of so many values
bool can_store(const ggml_tensor * target, int64_t piece) {
    return kvtuner_metal_name(target->type) && piece % ggml_blck_size(target->type) == 0 && target->ne[0] % piece == 0;
}

bool is_rotation(int64_t n) {
    return n == 64 || n == 128 || n == 256 || n == LONGEST;
}

kvtuner_metal_kernel kernel_of(ggml_type type, ggml_type exact, int64_t piece) {
    return { "kvtuner-write.metal",
             "kvtuner_write",
             LANES * SIMDGROUPS,
             { { "KVTUNER_TO", kvtuner_metal_name(type) },
               { "KVTUNER_EXACT", kvtuner_metal_name(exact) },
               { "KVTUNER_N", std::to_string(piece) } } };
}

kvtuner_metal_write_args args_of(const kvtuner_write & write) {
    const auto [cache, exact] = targets_of(write);
    const ggml_tensor *rows = cache->src[0], *indices = cache->src[1];
    kvtuner_metal_write_args args = {};
    args.pieces_per_row = (int32_t)(cache->ne[0] / piece_of(write));
    args.n_rows = (int32_t)rows->ne[1];
    args.row_stride[0] = (uint64_t)write.rows_stride;
    for (int i = 0; i < 3; ++i) {
        args.row_stride[i] = i == 0 ? args.row_stride[i] : rows->nb[i + 1];
        args.index_stride[i] = indices->nb[i];
        args.cache_stride[i] = cache->nb[i + 1];
    }
    args.n_index[0] = (int32_t)indices->ne[1];
    args.n_index[1] = (int32_t)indices->ne[2];
    args.is_wide = indices->type == GGML_TYPE_I64;
    args.is_of_values = kvtuner_is_of_values(cache);
    args.is_rotated = write.rotation != 0;
    args.scale = write.rotation ? 1 / sqrtf((float)write.rotation) : 1;
    args.has_factors = write.scale != nullptr;
    args.has_center = write.center && !write.blocks;
    args.has_centers = write.center && write.blocks;
    args.has_exact = exact != nullptr;
    args.exact_is_of_values = exact && kvtuner_is_of_values(exact);
    args.exact_stride = exact ? exact->nb[1] : 0;
    return args;
}

}  // namespace

bool kvtuner_metal_can_write(const kvtuner_write & write) {
    const auto [cache, exact] = targets_of(write);
    const int64_t piece = piece_of(write);
    // upstream does a norm and its weights in one step, and a write that begins with them would be missed
    const bool is_of_norm = write.scale && write.rows->op == GGML_OP_NORM;
    const bool is_piece = write.rotation == 0 || is_rotation(piece);
    return is_piece && !is_of_norm && can_store(cache, piece) && (!exact || can_store(exact, piece));
}

std::vector<kvtuner_metal_kernel> kvtuner_metal_write_kernels(ggml_type type, ggml_type exact, int64_t head_size) {
    int64_t rotation = 0;
    for (int64_t n = 64; n <= LONGEST && head_size % n == 0; n *= 2) {
        rotation = n;
    }
    // a cache rotates all its layers or none; rows of types of ours are also stored alone
    std::vector<kvtuner_metal_kernel> kernels = { kernel_of(type, exact, piece_of(type, 0)) };
    if (rotation != 0) {
        kernels.push_back(kernel_of(type, exact, piece_of(type, rotation)));
    }
    if (kvtuner_is_cache_only(type)) {
        kernels.push_back(kernel_of(type, GGML_TYPE_F16, piece_of(type, 0)));
    }
    return kernels;
}

void kvtuner_metal_write(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const kvtuner_write & write) {
    const auto [cache, exact] = targets_of(write);
    kvtuner_metal_write_args args = args_of(write);
    const auto set = [&](const ggml_tensor * tensor, int slot) {
        ggml_metal_encoder_set_buffer(encoder, kvtuner_metal_buffer(tensor ? tensor : write.rows), slot);
    };
    kvtuner_metal_begin(device, encoder, kernel_of(cache->type, exact ? exact->type : GGML_TYPE_F16, piece_of(write)));
    ggml_metal_encoder_set_bytes(encoder, &args, sizeof(args), 0);
    set(write.rows, 1);
    set(cache->src[1], 2);
    set(cache, 3);
    set(write.scale, 4);
    set(write.center, 5);
    set(write.blocks, 6);
    set(exact ? exact->src[1] : nullptr, 7);
    set(exact, 8);
    const int64_t n_pieces = (int64_t)args.n_rows * args.pieces_per_row;
    ggml_metal_encoder_dispatch_threadgroups(encoder, (int)((n_pieces + SIMDGROUPS - 1) / SIMDGROUPS),
                                             (int)cache->src[0]->ne[2], (int)cache->src[0]->ne[3], LANES, SIMDGROUPS,
                                             1);
}

void kvtuner_metal_set_rows(ggml_metal_device_t device, ggml_metal_encoder_t encoder, const ggml_tensor * set_rows) {
    kvtuner_write write = {};
    write.rows = set_rows->src[0];
    write.rows_stride = (int64_t)set_rows->src[0]->nb[1];
    write.stores = { set_rows };
    kvtuner_metal_write(device, encoder, write);
}
