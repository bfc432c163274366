// How tokens of a stream are shared out among parts, and where exact rows of a block of threads lie in shared memory.
#pragma once

#include "kvtuner-cuda-launch.cuh"

#include <algorithm>
#include <cstdint>
#include <optional>

namespace kvtuner::cuda {

// bytes of a head of exact rows
struct exact_bytes {
    int k, v;
};

// Shared memory that exact rows may have: behind lots, of which so many may come before, up to `end`.
struct exact_room {
    int at, lot_bytes, most_lots, end;

    int behind(int n_lots) const {
        return at + n_lots * lot_bytes;
    }
};

// units of exact rows that each warp, or team of them, takes in no longer than a lot
inline int exact_units_of_lot(const attention_args & args) {
    return args.team > 1 ? 1 : args.units;
}

// Exact rows of a stream are all slots, or its share where each stream has its own.
inline int slots_of_stream(const attention_args & args, const attention_launch & launch) {
    return args.exact_first ? (args.exact.n_tokens + launch.n_stream - 1) / launch.n_stream : args.exact.n_tokens;
}

inline int units_of(int n, int at_once) {
    return (n + at_once - 1) / at_once;
}

// As many parts as there are blocks of threads at once, or lots, those of exact rows included. Parts that have a lot
// more than others come last.
inline void share_lots(attention_args & args, attention_launch & launch, int n_lots, int n_blocks) {
    const int n_exact = units_of(slots_of_stream(args, launch), args.tokens_of_lot());
    launch.n_parts = std::max(1, std::min(n_blocks, n_lots + n_exact));
    args.n_of_parts = n_lots / launch.n_parts;
    args.first_of_more = launch.n_parts - n_lots % launch.n_parts;
}

// Parts that have a lot less than others take exact rows, if these take no longer than it; otherwise all parts.
inline void share_slots(attention_args & args, const attention_launch & launch, int slots) {
    exact_share & share = args.share;
    share.n_slots = slots_of_stream(args, launch);
    share.slots = slots;
    share.n_units = units_of(share.n_slots, slots);
    const bool have_time = share.n_units <= args.first_of_more * args.sub_warps * exact_units_of_lot(args);
    share.n_parts = std::min(share.n_units, have_time ? args.first_of_more : launch.n_parts);
}

// chunks that a head of a side may have a part of
inline int chunks_of(const cached_side & side, int head_bytes) {
    const int64_t place = (int64_t)(uintptr_t)side.data | side.of.token | side.of.head | CHUNK;
    const int alignment = (int)(place & -place);
    return (head_bytes + CHUNK - alignment + CHUNK - 1) / CHUNK;
}

// Rows lie an odd number of chunks apart, so that lanes that read the same of different rows do not wait for each
// other.
inline void set_exact_layout(attention_args & args, exact_bytes head) {
    exact_layout & layout = args.exact_at;
    layout.k_chunks = chunks_of(args.exact.k, head.k);
    layout.v_chunks = chunks_of(args.exact.v, head.v);
    layout.row_bytes = ((layout.k_chunks + layout.v_chunks) | 1) * CHUNK;
    layout.masks = args.share.slots * layout.row_bytes;
    layout.bytes = layout.masks + args.n_query * TOKENS * (int)sizeof(half);
}

// Units of so many slots, for as many of a head's warps at once as there are units for and room, and then as many lots
// before them. False: there is no room.
inline bool place_exact_rows(attention_args & args, exact_bytes head, const exact_room & room) {
    exact_share & share = args.share;
    set_exact_layout(args, head);
    const int of_warps = args.heads_of_block * args.exact_at.bytes;
    const auto fitting = [&](int n_lots) { return (room.end - room.behind(n_lots)) / of_warps; };
    const int least_lots = std::min(room.most_lots, 1), wanted = units_of(share.n_units, share.n_parts);
    share.sub_warps = std::min({ args.sub_warps, wanted, fitting(least_lots) });
    if (share.sub_warps <= 0) {
        return false;
    }
    int n_lots = room.most_lots;
    while (fitting(n_lots) < share.sub_warps) {
        --n_lots;
    }
    args.exact_at.first_lots = n_lots;
    args.exact_at.at = room.behind(n_lots);
    return true;
}

// Bytes of shared memory up to the end of exact rows. None: there is no room for any.
inline std::optional<int> share_exact_rows(attention_args & args, const attention_launch & launch, exact_bytes head,
                                           const exact_room & room) {
    for (int slots = TOKENS; slots > 0; slots /= 2) {
        share_slots(args, launch, slots);
        if (place_exact_rows(args, head, room)) {
            return args.exact_at.at + args.heads_of_block * args.share.sub_warps * args.exact_at.bytes;
        }
    }
    return std::nullopt;
}

}  // namespace kvtuner::cuda
