#include "kvtuner-cuda-prefill-plan.cuh"

#include "kvtuner-mark.h"

#include <algorithm>

namespace kvtuner::cuda {

namespace {

constexpr int MOST_PARTS = 8;          // of tokens: so many are added up at once
constexpr double COST_OF_PART = 0.02;  // of a round of blocks

// of a block of threads of a pair of head sizes
struct block_sizes {
    int rows, tokens, raw_at;
};

std::optional<block_sizes> sizes_of(int64_t size_k, int64_t size_v) {
#define KVTUNER_SIZE(DK, DV)                                             \
    if (size_k == (DK) && size_v == (DV)) {                              \
        using sizes = prefill_sizes<DK, DV>;                             \
        return block_sizes{ sizes::ROWS, sizes::TOKENS, sizes::RAW_AT }; \
    }
    KVTUNER_CUDA_PREFILL_SIZES(KVTUNER_SIZE)
#undef KVTUNER_SIZE
    return std::nullopt;
}

raw_rows rows_of(const cached_side & side, ggml_type type, int64_t size) {
    const int row = (int)ggml_row_size(type, size);
    raw_rows rows = {};
    rows.chunk = chunk_for({ (int64_t)(uintptr_t)side.data, row, side.of.token, side.of.head, side.of.stream });
    if (rows.chunk == 0) {
        return rows;
    }
    // rows of as many bytes as all banks have would be in the same ones
    rows.pitch = row % 128 == 0 ? row + 16 : row;
    rows.by_row = divisor_of(row / rows.chunk);
    rows.at_once = PREFILL_THREADS / 2 / rows.by_row.d;
    return rows;
}

raw_side raw_side_of(const token_source & from, const ggml_tensor * k, const ggml_tensor * v) {
    return { rows_of(from.k, k->type, k->ne[0]), rows_of(from.v, v->type, v->ne[0]) };
}

bool is_copied(const raw_side & side) {
    return side.k.at_once > 0 && side.v.at_once > 0;
}

// How long it takes with so many parts of tokens. All blocks store theirs.
double time_of(int n_blocks, int n_at_once, int n_parts) {
    const int rounds = (n_blocks * n_parts + n_at_once - 1) / n_at_once;
    return (double)rounds / n_parts + COST_OF_PART * (n_parts - 1) * std::max(1.0, (double)n_blocks / n_at_once);
}

int best_parts(int n_blocks, int n_at_once, int n_tiles) {
    int best = 1;
    for (int n = 2; n <= std::min(MOST_PARTS, n_tiles); ++n) {
        if (time_of(n_blocks, n_at_once, n) < time_of(n_blocks, n_at_once, best)) {
            best = n;
        }
    }
    return best;
}

int marks_of(int n_tokens) {
    return GGML_PAD(n_tokens, SEEN_AT_ONCE) / SEEN_TOKENS;
}

void set_marks(prefill_args & args, int n_stream) {
    seen_marks & marks = args.seen_by;
    marks.n_exact = marks_of(args.exact.n_tokens);
    marks.n = marks.n_exact + marks_of(args.cache.n_tokens);
    marks.n_rows = (args.n_query + SEEN_QUERIES - 1) / SEEN_QUERIES;
    marks.n_stream = n_stream;
}

}  // namespace

std::optional<prefill_plan> plan_prefill(const ggml_tensor * node, const rotations & around,
                                         const device_limits & limits) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const auto sizes = sizes_of(k->ne[0], v->ne[0]);
    if (!sizes || !is_read(node) || q->ne[1] <= MOST_FEW) {
        return std::nullopt;
    }
    prefill_plan plan = {};
    prefill_args & args = plan.args;
    prefill_launch & launch = plan.launch;
    set_node(node, around, args);
    args.by_group = divisor_of(args.group);
    args.raw_cache = raw_side_of(args.cache, k, v);
    args.raw_exact = args.raw_cache;
    if (kvtuner_has_exact(node)) {
        args.raw_exact = raw_side_of(args.exact, node->src[KVTUNER_EXACT_AT], node->src[KVTUNER_EXACT_AT + 1]);
    }
    if (!is_copied(args.raw_cache) || !is_copied(args.raw_exact)) {
        return std::nullopt;
    }
    args.raw_v_at = GGML_PAD(sizes->tokens * std::max(args.raw_cache.k.pitch, args.raw_exact.k.pitch), CHUNK);
    args.raw_bytes =
            args.raw_v_at + GGML_PAD(sizes->tokens * std::max(args.raw_cache.v.pitch, args.raw_exact.v.pitch), CHUNK);
    launch.shared_bytes = sizes->raw_at + 2 * args.raw_bytes;
    if (launch.shared_bytes > limits.shared_bytes) {
        return std::nullopt;
    }
    launch.n_row_tiles = (args.n_columns() + sizes->rows - 1) / sizes->rows;
    launch.n_stream = (int)q->ne[3];
    set_marks(args, launch.n_stream);
    args.merge.n_parts = best_parts(launch.n_row_tiles * args.n_head_kv * launch.n_stream, limits.n_multiprocessors,
                                    args.seen_by.n * SEEN_TOKENS / sizes->tokens);
    return plan;
}

seen_args seen_of(const prefill_args & args) {
    return { args.cache, args.exact, args.exact_rows, args.n_query, args.seen_by };
}

}  // namespace kvtuner::cuda
