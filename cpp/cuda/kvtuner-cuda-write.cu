#include "kvtuner-cuda-write.cuh"

#include "ggml-cuda/common.cuh"
#include "kvtuner-cuda-exact-types.h"
#include "kvtuner-cuda-write-formats.cuh"

#include "ggml-impl.h"
#include "kvtuner-mark.h"

#include <algorithm>

using namespace kvtuner::cuda;
using kvtuner::overlaps;

namespace {

static void launch(cudaStream_t stream, const write_set & set) {
    int most = 0;
    for (const write_args & args : set.of) {
        most = std::max(most, args.n_pieces);
    }
    const unsigned n_blocks = (unsigned)((most + WARPS_PER_BLOCK - 1) / WARPS_PER_BLOCK);
    const unsigned n_warps = warps_of_write((int)n_blocks);
    const ggml_cuda_kernel_launch_params params(dim3(n_blocks, set.n), dim3(WARP, n_warps), (size_t)0, stream);
    ggml_cuda_kernel_launch(write_rows<all_formats>, params, set);
}

// Where the rows go, and where they go as exact ones, or null. Of two stores in types of exact rows either may be
// either.
struct targets {
    const ggml_tensor *cache, *exact;
};

static targets targets_of(const kvtuner_write & write) {
    if (write.stores.size() < 2) {
        return { write.stores[0], nullptr };
    }
    const ggml_tensor *first = write.stores[0], *second = write.stores[1];
    const auto rank = [](const ggml_tensor * t) { return t->type == GGML_TYPE_F16 ? 2 : t->type == GGML_TYPE_Q8_0; };
    return rank(first) > rank(second) ? targets{ second, first } : targets{ first, second };
}

// the values of a row that a warp takes
static int64_t piece_of(const kvtuner_write & write) {
    return write.rotation ? write.rotation : std::max<int64_t>(PLAIN, ggml_blck_size(targets_of(write).cache->type));
}

// whether upstream does this step and a product after it in one: a write that begins with that product would be missed
static bool is_done_with_product(const ggml_tensor * rows) {
    return rows->op == GGML_OP_MUL || rows->op == GGML_OP_MUL_MAT || rows->op == GGML_OP_UNARY;
}

// whether a warp takes as many values that are rotated or turned together
static bool is_piece(int64_t n) {
    return n == 64 || n == 128 || n == 256 || n == 512;
}

static bool can_do(const kvtuner_write & write) {
    const auto [cache, exact] = targets_of(write);
    const int64_t n = piece_of(write);
    const bool is_length = write.rotation == 0 ? cache->ne[0] % n == 0 : is_piece(n);
    if ((exact && !is_exact_type(exact->type)) || (write.scale && is_done_with_product(write.rows))) {
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

static void set_pieces(write_args & args, int64_t row_length, int64_t n_rows, int64_t piece) {
    args.row_length = (int)row_length;
    args.piece = (int)piece;
    args.pieces_per_row = (int)(row_length / piece);
    args.n_pieces = (int)(n_rows * args.pieces_per_row);
}

static write_args args_of(const kvtuner_write & write) {
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
    args.type = cache->type;
    args.is_of_values = kvtuner_is_of_values(cache);
    if (exact) {
        args.exact_indices = (const int64_t *)exact->src[1]->data;
        args.exact = (char *)exact->data;
        args.exact_stride = (int64_t)exact->nb[1];
        args.exact_type = exact->type;
    }
    set_pieces(args, cache->ne[0], cache->src[0]->ne[1], piece_of(write));
    args.is_rotated = write.rotation != 0;
    args.scale = write.rotation ? 1 / sqrtf(write.rotation) : 1;
    return args;
}

static rope_args rope_args_of(const ggml_tensor * rope) {
    rope_args args = {};
    const int32_t * params = rope->op_params;
    float base, beta_fast, beta_slow, corr[2];
    memcpy(&base, params + 5, sizeof(float));
    memcpy(&args.freq_scale, params + 6, sizeof(float));
    memcpy(&args.ext_factor, params + 7, sizeof(float));
    memcpy(&args.attn_factor, params + 8, sizeof(float));
    memcpy(&beta_fast, params + 9, sizeof(float));
    memcpy(&beta_slow, params + 10, sizeof(float));
    args.n_turned = params[1];
    args.is_apart = params[2] == GGML_ROPE_TYPE_NEOX;
    args.theta_scale = powf(base, -2.0f / args.n_turned);
    ggml_rope_yarn_corr_dims(args.n_turned, params[4], base, beta_fast, beta_slow, corr);
    args.corr_low = corr[0];
    args.corr_high = corr[1];
    args.positions = (const int32_t *)rope->src[1]->data;
    args.factors = rope->src[2] ? (const float *)rope->src[2]->data : nullptr;
    return args;
}

// what RoPE reads, instead of what it makes
static void set_turned(write_args & args, const ggml_tensor * rope) {
    args.rows = (const float *)rope->src[0]->data;
    args.stride = (int64_t)rope->src[0]->nb[2] / (int64_t)sizeof(float);
    args.rope = rope_args_of(rope);
}

// rows that are turned, and go where the node has them
static write_args args_of(const ggml_tensor * rope) {
    write_args args = {};
    set_turned(args, rope);
    args.cache = (char *)rope->data;
    args.cache_stride = (int64_t)rope->nb[2];
    args.type = GGML_TYPE_F32;
    set_pieces(args, rope->ne[0] * rope->ne[1], rope->ne[2], rope->ne[0]);
    args.scale = 1;
    return args;
}

static const ggml_tensor * without_views(const ggml_tensor * values) {
    while (values->op == GGML_OP_RESHAPE || values->op == GGML_OP_VIEW) {
        values = values->src[0];
    }
    return values;
}

// whether a step changes what RoPE reads, or reads or changes what it makes
static bool is_in_the_way(const ggml_tensor * step, const ggml_tensor * rope) {
    const auto is_read = [rope](const ggml_tensor * source) { return source && overlaps(source, rope); };
    return overlaps(step, rope) || overlaps(step, rope->src[0]) ||
           std::any_of(std::begin(step->src), std::end(step->src), is_read);
}

// RoPE of rows of heads next to each other, of as many values as a warp takes. What upstream does in one step with the
// norm before it is left to it.
static bool is_rope_of_rows(const ggml_tensor * node) {
    if (node->op != GGML_OP_ROPE) {
        return false;
    }
    const ggml_tensor *rows = node->src[0], *made_by = without_views(rows);
    const int mode = node->op_params[2], n_turned = node->op_params[1], first = node->op_params[15];
    // what is read before the kernel before has ended must not come from one
    const bool is_given =
            without_views(node->src[1])->op == GGML_OP_NONE && (!node->src[2] || node->src[2]->op == GGML_OP_NONE);
    return is_piece(node->ne[0]) && node->ne[3] == 1 && ggml_is_contiguous(node) && node->type == GGML_TYPE_F32 &&
           rows->type == GGML_TYPE_F32 && rows->nb[0] == sizeof(float) && rows->nb[1] == node->nb[1] && is_given &&
           made_by->op != GGML_OP_MUL && (node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0 &&
           (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && first == 0 && n_turned % 2 == 0;
}

// whether these values are those rows, which nobody else reads
static bool are_rows(const ggml_cgraph & graph, int rope, const kvtuner_write & write) {
    const ggml_tensor * node = graph.nodes[rope];
    return without_views(write.rows) == node && ggml_node_get_use_count(&graph, rope) == 1 &&
           write.rows->data == node->data && write.rows_stride == (int64_t)node->nb[2] && write.rotation == node->ne[0];
}

}  // namespace

kvtuner_cuda_writes::kvtuner_cuda_writes(const ggml_cgraph & graph, bool is_off)
    : graph(graph), writes(graph, is_off ? [](const kvtuner_write &) { return false; } : can_do, /*with_scale =*/true) {
    if (writes.unless_none()) {
        is_turned.resize(graph.n_nodes);
        find_groups();
    }
}

// A write goes along with the one before it where nothing else comes between.
void kvtuner_cuda_writes::find_groups() {
    group * last = nullptr;  // that has room for one more
    for (int i = 0; i < graph.n_nodes; ++i) {
        const kvtuner_write * write = writes.starting_with(i);
        if (write && last) {
            last->writes.push_back(write);
            last = nullptr;
        } else if (write) {
            last = &groups[i];
            last->writes = { write };
        } else if (!writes.covers(i) && !ggml_op_is_empty(graph.nodes[i]->op)) {
            last = nullptr;
        }
    }
}

void kvtuner_cuda_writes::take_rope(const std::function<bool(int)> & is_elsewhere) {
    for (auto & [first, group] : groups) {
        take_rope(first, group, is_elsewhere);
    }
}

// RoPE can wait until the write where no step between is in its way.
void kvtuner_cuda_writes::take_rope(int first, group & g, const std::function<bool(int)> & is_elsewhere) {
    std::vector<const ggml_tensor *> between;
    g.turned.resize(g.writes.size());
    for (int i = first - 1; i >= 0 && between.size() < MOST_BETWEEN; --i) {
        const ggml_tensor * node = graph.nodes[i];
        if (ggml_op_is_empty(node->op) || covers(i) || is_elsewhere(i)) {
            continue;
        }
        const auto is_clear = [node](const ggml_tensor * step) { return !is_in_the_way(step, node); };
        if (is_rope_of_rows(node) && std::all_of(between.begin(), between.end(), is_clear) && g.takes(graph, i)) {
            is_turned[i] = true;
        } else {
            between.push_back(node);
        }
    }
}

// as that of rows of a write, or else as that of queries, which are stored beside it
bool kvtuner_cuda_writes::group::takes(const ggml_cgraph & graph, int i) {
    const ggml_tensor * rope = graph.nodes[i];
    bool is_apart = true;
    for (size_t k = 0; k < writes.size(); ++k) {
        if (!turned[k] && are_rows(graph, i, *writes[k])) {
            turned[k] = rope;
            return true;
        }
        is_apart = is_apart && !overlaps(turned[k] ? turned[k]->src[0] : writes[k]->rows, rope);
    }
    if (!is_apart || queries) {
        return false;
    }
    queries = rope;
    return true;
}

void kvtuner_cuda_writes::run(ggml_backend_cuda_context & ctx, int i) const {
    const auto found = groups.find(i);
    if (found == groups.end()) {
        return;
    }
    const group & g = found->second;
    write_set set = {};
    for (size_t k = 0; k < g.writes.size(); ++k) {
        write_args & args = set.of[set.n++] = args_of(*g.writes[k]);
        if (k < g.turned.size() && g.turned[k]) {
            set_turned(args, g.turned[k]);
        }
    }
    if (g.queries) {
        set.of[set.n++] = args_of(g.queries);
    }
    if (set.of[0].n_pieces > 0) {
        launch(ctx.stream(), set);
    }
}
