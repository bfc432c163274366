// Exact rows: tokens as they were before they were quantized. They come from anywhere, and where is known late, so that
// each warp has its own copied to shared memory: the first of them while queries are made.
#pragma once

#include "kvtuner-cuda-ahead.cuh"
#include "kvtuner-cuda-columns.cuh"

namespace kvtuner::cuda {

// The exact rows that a warp has at a time, a unit: those of the head and the stream.
struct exact_rows {
    char * here;  // their place in shared memory
    int head, unit, first;
    int row = -1;  // of slot lane % TOKENS of the unit; negative for none
    half seen;     // what the mask of query lane / TOKENS adds for it
    int n = 0;     // rows that are here; 0 if no query sees any

    // turn: which of the head's warps it is, of those that take units one after the other
    __device__ exact_rows(const attention_args & a, char * here, const int turn, const int head)
        : here(here), head(head), unit(a.share.n_units), first(0) {
        const int part = blockIdx.x;
        if (part < a.share.n_parts && turn < a.share.sub_warps) {
            unit = part + turn * a.share.n_parts;
            first = a.exact_first ? a.exact_first[blockIdx.z] : 0;
        }
    }

    __device__ bool are_any(const attention_args & a) const {
        return unit < a.share.n_units;
    }

    __device__ int slot(const attention_args & a, const int token) const {
        return first + unit * a.share.slots + token;
    }

    // the warp's next unit, of which nothing is known yet
    __device__ exact_rows next(const attention_args & a) const {
        exact_rows other = *this;
        other.unit += a.share.n_parts * a.share.sub_warps;
        return other;
    }

    // asks memory for a unit before anything of it is known: half of the lanes for a key each, the others for a value
    __device__ void ask(const attention_args & a, const int lane) const {
        const int at = slot(a, lane % TOKENS);
        if (is_slot(a, at, lane % TOKENS)) {
            prefetch(mask(a, 0) + at);
            ask_for_exact_row(a, lane < TOKENS, head, a.exact_rows[at]);
        }
    }

    // asks where the rows lie, and what the first queries see
    __device__ void find(const attention_args & a, const int lane) {
        const int token = lane % TOKENS, query = lane / TOKENS, at = slot(a, token);
        const bool is_there = is_slot(a, at, token);
        row = is_there ? a.exact_rows[at] : -1;
        seen = is_there && query < a.n_query ? mask(a, query)[at] : unseen();
    }

    // when they are found: what queries see of them, and if that is any, the rows
    __device__ void bring(const attention_args & a, const int lane) {
        n = 0;
        if (!are_any(a)) {
            return;
        }
        const bool is_seen = put_masks(a, lane);
        if (__any_sync(0xffffffff, is_seen)) {
            n = __popc(__ballot_sync(0xffffffff, lane < TOKENS && row >= 0));
            copy_rows(a, lane);
        }
    }

    template <int DK, int DV, int TILES>
    __device__ void add(const attention_args & a, column_sums<DK, DV, TILES> & sums) const {
        if (n == 0) {
            return;
        }
        token_rows rows;
        rows.key = place(a, a.exact.k, 0, sums.g);
        rows.key_8 = place(a, a.exact.k, 0, sums.g + 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows.value[i] = place(a, a.exact.v, a.exact_at.k_chunks, 2 * sums.t + i % 2 + i / 2 * 8);
        }
        rows.kind_k = a.exact.k.kind;
        rows.kind_v = a.exact.v.kind;
        rows.next_key = rows.next_value = 0;
        token_marks marks[1] = { { masks(a), TOKENS, false, false, 0, 0 } };
        if (a.centers) {
            marks[0].block = a.exact.blocks[slot(a, which(sums.g))];
            marks[0].block_8 = a.exact.blocks[slot(a, which(sums.g + 8))];
        }
        wait_for_copies();
        __syncwarp();
        sums.template add<true>(a, head, rows, marks);
    }

private:
    __device__ bool is_slot(const attention_args & a, const int at, const int token) const {
        return token < a.share.slots && at - first < a.share.n_slots && at < a.exact.n_tokens;
    }

    __device__ static const half * mask(const attention_args & a, const int query) {
        return a.exact.mask + blockIdx.z * a.exact.mask_stream + query * a.exact.mask_query;
    }

    __device__ static half unseen() {
        return __ushort_as_half(0xfc00);
    }

    __device__ half * masks(const attention_args & a) const {
        return (half *)(here + a.exact_at.masks);
    }

    // Where no row is, the first takes its place: what it has are numbers. Slots without rows come last.
    __device__ int which(const int token) const {
        return token < n ? token : 0;
    }

    // whether this lane's slot is seen
    __device__ bool put_masks(const attention_args & a, const int lane) const {
        const int token = lane % TOKENS;
        bool is_seen = false;
#pragma unroll 1
        for (int query = lane / TOKENS; query < a.n_query; query += LANES / TOKENS) {
            half more = unseen();
            if (row >= 0) {
                more = query < LANES / TOKENS ? seen : mask(a, query)[slot(a, token)];
            }
            masks(a)[query * TOKENS + token] = more;
            is_seen = is_seen || !__hisinf(more);
        }
        return is_seen;
    }

    // half of the lanes copy keys, the others values: all chunks that a head has a part of
    __device__ void copy_rows(const attention_args & a, const int lane) const {
        const exact_layout & layout = a.exact_at;
        const bool is_key = lane < TOKENS;
        const strides of = is_key ? a.exact.k.of : a.exact.v.of;
        const char * data = (is_key ? a.exact.k.data : a.exact.v.data) + head * of.head;
        const int n_chunks = is_key ? layout.k_chunks : layout.v_chunks;
        const uint32_t to = (uint32_t)__cvta_generic_to_shared(here) + (is_key ? 0 : layout.k_chunks * CHUNK);
        const int most_chunks = max(layout.k_chunks, layout.v_chunks);
#pragma unroll 1
        for (int chunk = lane % TOKENS; chunk - lane % TOKENS < most_chunks; chunk += TOKENS) {
#pragma unroll 4
            for (int i = 0; i < TOKENS; ++i) {
                const char * from = data + (int64_t)__shfl_sync(0xffffffff, row, i) * (int)of.token;
                if (i < n && chunk < n_chunks) {
                    copy_later<CHUNK>(to + i * layout.row_bytes + chunk * CHUNK,
                                      (const char *)((uintptr_t)from / CHUNK * CHUNK) + chunk * CHUNK);
                }
            }
        }
    }

    // of a token's key or value, whose chunks begin with this one
    __device__ const char * place(const attention_args & a, const cached_side & side, const int first_chunk,
                                  const int token) const {
        const int i = which(token);
        const uint32_t from = (uint32_t)(uintptr_t)side.data + head * (uint32_t)side.of.head +
                              __shfl_sync(0xffffffff, row, i) * (uint32_t)side.of.token;
        return here + i * a.exact_at.row_bytes + first_chunk * CHUNK + from % CHUNK;
    }
};

// all of a warp, of which the first unit is on its way
template <int DK, int DV, int TILES>
__device__ void add_exact_rows(const attention_args & a, const int lane, exact_rows & rows,
                               column_sums<DK, DV, TILES> & sums) {
#pragma unroll 1
    while (rows.are_any(a)) {
        exact_rows next = rows.next(a);
        next.find(a, lane);
        rows.add(a, sums);
        __syncwarp();
        next.bring(a, lane);
        rows = next;
    }
}

}  // namespace kvtuner::cuda
