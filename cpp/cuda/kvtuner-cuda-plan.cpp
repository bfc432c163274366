#include "kvtuner-cuda-plan.cuh"

#include "kvtuner-cuda-lot-layout.h"
#include "kvtuner-cuda-share.h"
#include "kvtuner-mark.h"

#include <algorithm>
#include <initializer_list>

namespace kvtuner::cuda {

namespace {

constexpr int LEAST_LONG_LOTS = 2;  // of each multiprocessor
constexpr int LEAST_WARPS = 4;      // of a block that reads tokens where they are

// by how much codes, or the bytes found for them, are more than levels
float offset_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
            return 0;
        case GGML_TYPE_Q4_0:
            return 8;
        case GGML_TYPE_Q5_0:
            return 16;
        default:
            return 128;
    }
}

// how many times too large codes of the last 16 of 32 values are where they are read as they lie
float high_of(ggml_type type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q5_0 ? 16 : 1;
}

int most_tiles(int64_t size_k, int64_t size_v) {
#define KVTUNER_SIZE(DK, DV, MOST_TILES)    \
    if (size_k == (DK) && size_v == (DV)) { \
        return MOST_TILES;                  \
    }
    KVTUNER_CUDA_SIZES(KVTUNER_SIZE)
#undef KVTUNER_SIZE
    return 0;
}

void set_codes(const ggml_tensor * node, attention_args & args) {
    args.offset = offset_of(node->src[1]->type);
    args.offset_v = offset_of(node->src[2]->type);
    args.high_k = high_of(node->src[1]->type);
    args.high_v = high_of(node->src[2]->type);
    args.has_plain_scores = args.n_query == 1 && args.cap == 0 && args.max_bias == 0;
    args.exact_offset = kvtuner_has_exact(node) ? offset_of(node->src[KVTUNER_EXACT_AT]->type) : 0;
}

// The largest blocks of threads that have so many lots in shared memory. False: none does.
bool find_blocks(const ggml_tensor * node, attention_args & args, int tiles, const device_limits & limits,
                 int least_lots) {
    const int most = most_warps((int)node->src[2]->ne[0], tiles);
    for (int n_heads = std::min(args.n_head_kv, most); n_heads > 0; --n_heads) {
        for (int sub_warps = 16; sub_warps > 0 && args.n_head_kv % n_heads == 0; sub_warps /= 2) {
            if (n_heads * sub_warps <= most && set_lot(node, args, limits.takes_rows, n_heads, sub_warps)) {
                set_lots(node, args, tiles, limits.shared_bytes);
                if (args.n_lots >= least_lots) {
                    return true;
                }
            }
        }
    }
    return false;
}

int lots_of_cache(const attention_args & args) {
    return (args.cache.n_tokens + args.tokens_of_lot() - 1) / args.tokens_of_lot();
}

int blocks_of_multiprocessor(const attention_args & args, const attention_launch & launch, const device_limits & limits,
                             int size_v) {
    return args.team > 1 ? 1
                         : std::min(most_warps(size_v, launch.tiles) / args.n_warps(),
                                    limits.shared_bytes / launch.shared_bytes);
}

// how many blocks of threads there are at once for each KV head, or group of them, of each stream
int blocks_at_once(const attention_args & args, const attention_launch & launch, const device_limits & limits,
                   int size_v) {
    return limits.n_multiprocessors * blocks_of_multiprocessor(args, launch, limits, size_v) /
           (launch.n_column_groups * args.head_groups() * launch.n_stream);
}

// One head to a block of so many warps, which read tokens where they are. False: there is no room for it.
bool set_one_head(const ggml_tensor * node, attention_args & args, attention_launch & launch,
                  const device_limits & limits, int n_warps) {
    const int size_k = (int)node->src[1]->ne[0], size_v = (int)node->src[2]->ne[0];
    args.heads_of_block = args.units = 1;
    args.sub_warps = n_warps;
    launch.shared_bytes = std::max(sum_bytes(size_k, launch.tiles) + query_bytes(args, size_k, launch.tiles),
                                   merge_bytes(args, size_v, launch.tiles));
    return launch.shared_bytes <= limits.shared_bytes;
}

// How many parts a short context has: one, so that nothing is left to be merged by another kernel, or where there are
// more tokens, so many that each warp has 16, and few if they can be. None: the context is not short.
int parts_in_place(const ggml_tensor * node, attention_args & args, attention_launch & launch,
                   const device_limits & limits) {
    const int size_v = (int)node->src[2]->ne[0], most = most_warps(size_v, launch.tiles), n = args.cache.n_tokens;
    for (int n_warps = LEAST_WARPS; n_warps <= most && n > BEST_OF_ONE_PART && n <= MOST_IN_PLACE; n_warps *= 2) {
        if (set_one_head(node, args, launch, limits, n_warps)) {
            const int n_parts = lots_of_cache(args);
            if ((n_parts <= FEW_PARTS || n_warps == most) && n_parts <= blocks_at_once(args, launch, limits, size_v)) {
                return n_parts;
            }
        }
    }
    return n <= MOST_OF_ONE_PART && set_one_head(node, args, launch, limits, most) ? 1 : 0;
}

// Warps that have more tokens at once: where there are so many, and room for their lots beside those on the way. False:
// there are not.
bool find_long_blocks(const ggml_tensor * node, attention_args & args, const attention_launch & launch,
                      const device_limits & limits) {
    const int size_k = (int)node->src[1]->ne[0], size_v = (int)node->src[2]->ne[0];
    args.units = most_units(size_k, size_v, launch.tiles);
    return args.units > 1 && find_blocks(node, args, launch.tiles, limits, 3) &&
           args.n_warps() == most_warps(size_v, launch.tiles) &&
           (int64_t)args.cache.n_tokens * launch.n_stream >=
                   (int64_t)LEAST_LONG_LOTS * args.tokens_of_lot() * limits.n_multiprocessors;
}

bool find_any_blocks(const ggml_tensor * node, attention_args & args, const attention_launch & launch,
                     const device_limits & limits) {
    args.units = 1;
    return find_blocks(node, args, launch.tiles, limits, 3) || find_blocks(node, args, launch.tiles, limits, 2);
}

// One head to a block of threads and so many teams that share its tokens, with this much room at least. False: there is
// less.
bool set_teams(const ggml_tensor * node, attention_args & args, int tiles, const device_limits & limits, int n_teams,
               int least_lots) {
    args.heads_of_block = 1;
    args.sub_warps = n_teams;
    if (!set_carried_lot(node, args, /*takes_rows =*/false, args.n_warps())) {
        return false;
    }
    set_lots(node, args, tiles, limits.shared_bytes);
    return args.n_lots >= least_lots;
}

// As few teams to a block of threads as have all tokens at once, without a second lot, or else as many as there is room
// for. False: for none.
bool find_teams(const ggml_tensor * node, attention_args & args, const attention_launch & launch,
                const device_limits & limits) {
    const int size_v = (int)node->src[2]->ne[0], most = most_warps(size_v, launch.tiles) / args.team;
    const auto set = [&](int n, int least_lots) { return set_teams(node, args, launch.tiles, limits, n, least_lots); };
    for (int units : { TEAM_UNITS, 1 }) {
        args.units = units;
        if (set(most, 1) && lots_of_cache(args) == 1) {
            return true;
        }
        for (int n = 1; n <= most; n *= 2) {
            if (set(n, 1) && lots_of_cache(args) <= blocks_at_once(args, launch, limits, size_v)) {
                return true;
            }
        }
        for (int n = most; n > 0; n /= 2) {
            if (set(n, 2)) {
                return true;
            }
        }
    }
    return set(1, 1);
}

// how many lots there are at once, where blocks of threads have so many each
void set_lots_ahead(const ggml_tensor * node, attention_args & args, attention_launch & launch) {
    const int n = std::min(lots_of_cache(args), args.n_of_parts + (args.first_of_more < launch.n_parts ? 1 : 0));
    args.lot.turns = 1;
    args.lots_ahead = n <= args.n_lots ? n : args.n_lots - (args.n_lots > 2 ? 2 : 1);
    args.n_lots = std::min(n, args.n_lots);
    launch.shared_bytes = lots_bytes(node, args, launch.tiles, args.n_lots);
}

// Lots, as rows or in chunks. False: no block of threads has room for them.
bool set_blocks(const ggml_tensor * node, attention_args & args, attention_launch & launch,
                const device_limits & limits) {
    if (!find_long_blocks(node, args, launch, limits) && !find_any_blocks(node, args, launch, limits)) {
        return false;
    }
    args.lot.turns = args.n_warps() / args.lot.carriers;
    // a lot may come where one was read that is not the last: so warps need not wait for each other
    args.lots_ahead = args.n_lots - (args.n_lots > 2 ? 2 : 1);
    launch.shared_bytes = lots_bytes(node, args, launch.tiles, args.n_lots);
    return true;
}

// Room for exact rows, besides that of lots: behind those that are on their way, and before queries that lie in the
// place of a lot. In short contexts it is behind queries.
exact_room room_for_exact_rows(const ggml_tensor * node, const attention_args & args, const attention_launch & launch,
                               const device_limits & limits) {
    const int size_k = (int)node->src[1]->ne[0], size_v = (int)node->src[2]->ne[0], tiles = launch.tiles;
    if (launch.is_short) {
        return { sum_bytes(size_k, tiles) + query_bytes(args, size_k, tiles), 0, 0, limits.shared_bytes };
    }
    const int limit = limits.shared_bytes / blocks_of_multiprocessor(args, launch, limits, size_v);
    const int most_behind = (limit - bytes_beside(args, size_k, size_v, tiles)) / LOT_ALIGNMENT * LOT_ALIGNMENT;
    const int behind = std::max(args.n_lots * args.lot.bytes, most_behind);
    return { 0, args.lot.bytes, args.lots_ahead, behind - queries_in_lot(args, size_k, tiles) };
}

// Exact rows of teams are read where they lie, others come to shared memory. False: there is no room for them.
bool set_exact_rows(const ggml_tensor * node, attention_args & args, attention_launch & launch,
                    const device_limits & limits) {
    if (args.team > 1) {
        share_slots(args, launch, TOKENS * args.units);
        args.share.sub_warps = args.sub_warps;
        return true;
    }
    const ggml_tensor *k = node->src[KVTUNER_EXACT_AT], *v = node->src[KVTUNER_EXACT_AT + 1];
    const int size_k = (int)node->src[1]->ne[0], size_v = (int)node->src[2]->ne[0];
    const exact_bytes head = { (int)ggml_row_size(k->type, k->ne[0]), (int)ggml_row_size(v->type, v->ne[0]) };
    const auto end = share_exact_rows(args, launch, head, room_for_exact_rows(node, args, launch, limits));
    if (end && launch.is_short) {
        launch.shared_bytes = std::max(launch.shared_bytes, *end);
    } else if (end) {
        const int queries = queries_in_lot(args, size_k, launch.tiles);
        args.behind_lots = std::max(args.behind_lots, GGML_PAD(*end + queries, LOT_ALIGNMENT));
        launch.shared_bytes =
                std::max(launch.shared_bytes, args.behind_lots + bytes_beside(args, size_k, size_v, launch.tiles));
    }
    return end.has_value();
}

}  // namespace

std::optional<attention_plan> plan_attention(const ggml_tensor * node, const rotations & around,
                                             const device_limits & limits) {
    if (!is_read(node) || node->src[0]->ne[1] > MOST_FEW || most_tiles(node->src[1]->ne[0], node->src[2]->ne[0]) == 0) {
        return std::nullopt;
    }
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    attention_plan plan = {};
    attention_args & args = plan.args;
    attention_launch & launch = plan.launch;
    set_node(node, around, args);
    args.exact_first = q->ne[3] > 1 ? kvtuner_integers_of(node).first_slots : nullptr;  // one stream has all slots
    set_codes(node, args);

    const int most = most_tiles(k->ne[0], v->ne[0]), wanted = (args.n_columns() + COLUMNS - 1) / COLUMNS;
    launch.tiles = std::min(most, wanted <= 1 ? 1 : wanted == 2 ? 2 : 4);
    launch.n_column_groups = (wanted + launch.tiles - 1) / launch.tiles;
    launch.n_stream = (int)q->ne[3];
    args.team = team_warps((int)v->ne[0]);
    const int n_in_place = args.team == 1 ? parts_in_place(node, args, launch, limits) : 0;
    launch.is_short = n_in_place > 0;
    if (!launch.is_short &&
        !(args.team > 1 ? find_teams(node, args, launch, limits) : set_blocks(node, args, launch, limits))) {
        return std::nullopt;
    }
    const int n_blocks = blocks_at_once(args, launch, limits, (int)v->ne[0]);
    launch.n_column_groups *= args.head_groups();
    args.by_heads = divisor_of(args.heads_of_block);
    args.by_groups = divisor_of(args.head_groups());
    args.by_columns = divisor_of(args.columns_of_block(launch.tiles));
    launch.n_threads = LANES * args.n_warps();
    const bool is_one_part = args.team > 1 ? lots_of_cache(args) == 1 : n_in_place == 1;
    const bool are_few = launch.is_short && n_in_place <= FEW_PARTS;
    share_lots(args, launch, lots_of_cache(args), is_one_part ? 1 : are_few ? std::min(n_blocks, FEW_PARTS) : n_blocks);
    if (args.team > 1) {
        set_lots_ahead(node, args, launch);
    }
    args.behind_lots = args.n_lots * args.lot.bytes;
    if (args.exact.n_tokens > 0 && !set_exact_rows(node, args, launch, limits)) {
        return std::nullopt;
    }

    args.merge.n_parts = launch.n_parts;
    return plan;
}

}  // namespace kvtuner::cuda
