// Attention of few queries with large heads: a team of warps has the same tokens. Each scores some of them by some
// values of their keys, all tell each other, and each sums 64 values of all of them. So a warp has few registers and
// few instructions, and rows of a team need not be added up.
#pragma once

#include "kvtuner-cuda-decode.cuh"

namespace kvtuner::cuda {

// what a warp of a team knows of its columns, and sums of its values
template <int DK, int TILES>
struct team_columns : column_sums<DK, VALUES_OF_MEMBER, TILES> {
    using columns = column_sums<DK, VALUES_OF_MEMBER, TILES>;
    using columns::g, columns::t, columns::lane, columns::q, columns::o;
    static constexpr int TEAM = team_warps(DK), STRIP = VALUES_OF_MEMBER;
    // exact rows come from memory: all at once where there are registers, rather than with few instructions
    template <bool IS_EXACT, int N>
    static constexpr int UNROLLED = IS_EXACT && TILES == 1 ? N : 1;
    const int team, member;
    float4 * told;  // scores: [lots, members, tiles, lanes], of two lots
    bool is_odd = false;

    __device__ team_columns(const columns & of_warp, const block_place & at, float4 * told_of_block)
        : columns(of_warp),
          team(at.team),
          member(at.member),
          told(told_of_block + at.team * (2 * TEAM * TILES * LANES)) {
    }

    // 16 tokens for each of `marks`, all of them in one lot
    template <bool IS_EXACT, int UNITS>
    __device__ void add(const attention_args & a, const int head_kv, const token_rows & rows,
                        const token_marks (&marks)[UNITS]) {
        const int to_mine = member % UNITS * rows.next_key;
        add<IS_EXACT>(a, head_kv, rows, rows.key + to_mine, rows.key_8 + to_mine, marks,
                      [&](const int unit, const int i) { return rows.value[i] + unit * rows.next_value; });
    }

    // Keys are tokens g and g + 8 of this warp's 16; value_of(unit, i): token 2t, 2t + 1 and 8 more of each 16.
    template <bool IS_EXACT, int UNITS, typename VALUE>
    __device__ void add(const attention_args & a, const int head_kv, const token_rows & rows, const char * key,
                        const char * key_8, const token_marks (&marks)[UNITS], const VALUE & value_of) {
        if (!sees_any<IS_EXACT>(a, marks)) {
            return;  // all warps of the team do
        }
        scores<TILES> mine = {}, s[UNITS] = {};
#define KVTUNER_SCORES(T) score_strips<T, IS_EXACT, UNITS>(key, key_8, mine)
        KVTUNER_FOR_KIND_OF(IS_EXACT, rows.kind_k, KVTUNER_SCORES)
#undef KVTUNER_SCORES
        if (a.centers && member < UNITS) {
            columns::template add_centers<IS_EXACT>(a, head_kv, mark_of(marks, member), mine);
        }
        tell_scores(mine, s);
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            columns::template add_bias<IS_EXACT>(a, marks[u], s[u]);
        }
        weights<TILES> p[UNITS];
        columns::weigh(s, p);
#define KVTUNER_VALUES(T) sum_slices<T, IS_EXACT>(value_of, p)
        KVTUNER_FOR_KIND_OF(IS_EXACT, rows.kind_v, KVTUNER_VALUES)
#undef KVTUNER_VALUES
    }

private:
    // with exact ends the masks hide all tokens of a short context
    template <bool IS_EXACT, int UNITS>
    __device__ bool sees_any(const attention_args & a, const token_marks (&marks)[UNITS]) const {
        float most = -INFINITY;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            most = fmaxf(most, fmaxf(columns::template bias<IS_EXACT>(marks[u], 0, false),
                                     columns::template bias<IS_EXACT>(marks[u], 0, true)));
        }
        return a.n_query > 1 || __any_sync(0xffffffff, most > -INFINITY);
    }

    template <int UNITS>
    __device__ static token_marks mark_of(const token_marks (&marks)[UNITS], const int unit) {
        token_marks mark = marks[0];
#pragma unroll
        for (int u = 1; u < UNITS; ++u) {
            mark = u == unit ? marks[u] : mark;
        }
        return mark;
    }

    // by this warp's part of the values: as many strips of them as a lot has units
    template <ggml_type T, bool IS_EXACT, int UNITS>
    __device__ void score_strips(const char * key, const char * key_8, scores<TILES> & s) const {
        constexpr int BYTES = STRIP / cached<T>::SIZE * cached<T>::BYTES;
        const int first = member / UNITS * UNITS;
        key += first * BYTES;
        key_8 += first * BYTES;
#pragma unroll(UNROLLED<IS_EXACT, UNITS>)
        for (int i = 0; i < UNITS; ++i) {
            add_scores<T, IS_EXACT, STRIP>(key + i * BYTES, key_8 + i * BYTES, q.template strip<STRIP>(first + i), t,
                                           s);
        }
    }

    // what all warps found for each 16 tokens
    template <int UNITS>
    __device__ void tell_scores(const scores<TILES> & mine, scores<TILES> (&s)[UNITS]) {
        float4 * here = told + (is_odd ? TEAM * TILES * LANES : 0) + lane;
        is_odd = !is_odd;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            here[(member * TILES + tile) * LANES] =
                    make_float4(mine[tile][0], mine[tile][1], mine[tile][2], mine[tile][3]);
        }
        wait_for_team(team, TEAM);
#pragma unroll
        for (int i = 0; i < TEAM * TILES; ++i) {
            const float4 more = here[i * LANES];
            float(&sum)[4] = s[i / TILES % UNITS][i % TILES];
            sum[0] += more.x;
            sum[1] += more.y;
            sum[2] += more.z;
            sum[3] += more.w;
        }
    }

    template <ggml_type T, bool IS_EXACT, int UNITS, typename VALUE>
    __device__ void sum_slices(const VALUE & value_of, weights<TILES> (&p)[UNITS]) {
        constexpr int BYTES = STRIP / cached<T>::SIZE * cached<T>::BYTES;
        constexpr form FORM = IS_EXACT ? form::EXACT : outputs<STRIP, TILES>::FORM;
        const int mine = member * BYTES;
#pragma unroll(UNROLLED<IS_EXACT, UNITS>)
        for (int unit = 0; unit < UNITS; ++unit) {
            const char * const value[] = { value_of(unit, 0) + mine, value_of(unit, 1) + mine, value_of(unit, 2) + mine,
                                           value_of(unit, 3) + mine };
            add_values<T, FORM>(value, p[0], g, o);
            // a loop has no other way to the next registers
#pragma unroll
            for (int u = 1; u < UNITS; ++u) {
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    p[u - 1][tile][0] = p[u][tile][0];
                    p[u - 1][tile][1] = p[u][tile][1];
                }
            }
        }
    }
};

// Units of exact rows that a team has: `call` with the first slot of each.
template <typename CALL>
__device__ void each_team_unit(const attention_args & a, const block_place & at, const CALL & call) {
    const int part = blockIdx.x;
    if (part >= a.share.n_parts) {
        return;
    }
    const int first = a.exact_first ? a.exact_first[at.stream] : 0;
#pragma unroll 1
    for (int unit = part + at.sub * a.share.n_parts; unit < a.share.n_units; unit += a.share.n_parts * a.sub_warps) {
        call(first + unit * a.share.slots);
    }
}

// They come from anywhere, and where is known late: they are asked for before queries are made. Half of the lanes of a
// warp have a key each, the others a value.
inline __device__ void prefetch_exact_rows(const attention_args & a, const block_place & at) {
    each_team_unit(a, at, [&](const int first) {
#pragma unroll 1
        for (int slot = first + at.lane % TOKENS; slot < first + a.share.slots; slot += TOKENS) {
            const int row = slot < a.exact.n_tokens ? a.exact_rows[slot] : -1;
            ask_for_exact_row(a, at.lane < TOKENS, at.first_head + at.head, row);
        }
    });
}

// Each warp finds those of its keys and those of its values itself.
template <int UNITS, int DK, int TILES>
__device__ void add_team_exact_rows(const attention_args & a, const block_place & at, team_columns<DK, TILES> & sums) {
    const int head = at.first_head + at.head;
    each_team_unit(a, at, [&](const int slot) {
        const auto row_of = [&](const int i) { return slot + i < a.exact.n_tokens ? a.exact_rows[slot + i] : -1; };
        const auto place_of = [&](const cached_side & side, const int row) {
            return side.data + max(0, row) * side.of.token + head * side.of.head;
        };
        token_marks marks[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const int first = u * TOKENS, row = row_of(first + sums.g), row_8 = row_of(first + sums.g + 8);
            marks[u] = { a.exact.mask + at.stream * a.exact.mask_stream + slot + first,
                         (int)a.exact.mask_query,
                         row < 0,
                         row_8 < 0,
                         0,
                         0 };
            if (a.centers) {
                marks[u].block = row < 0 ? 0 : a.exact.blocks[slot + first + sums.g];
                marks[u].block_8 = row_8 < 0 ? 0 : a.exact.blocks[slot + first + sums.g + 8];
            }
        }
        token_rows rows = {};
        rows.kind_k = a.exact.k.kind;
        rows.kind_v = a.exact.v.kind;
        const int mine = at.member % UNITS * TOKENS + sums.g;
        sums.template add<true>(a, head, rows, place_of(a.exact.k, row_of(mine)), place_of(a.exact.k, row_of(mine + 8)),
                                marks, [&](const int unit, const int i) {
                                    return place_of(a.exact.v, row_of(unit * TOKENS + 2 * sums.t + i % 2 + i / 2 * 8));
                                });
    });
}

// UNITS: of 16 tokens, that a team has at once
template <int DK, int DV, int TILES, int UNITS>
__global__ void __launch_bounds__(most_warps(DV, TILES) * LANES, 1) attend_wide(const attention_args a) {
    static_assert(DK == DV && !query_parts<DK, TILES>::IN_REGISTERS);
    constexpr int TEAM = team_warps(DV), SUM_BYTES = sum_bytes(DK, TILES), AT_A_TIME = TEAM < COLUMNS ? 2 : 1;
    extern __shared__ __align__(128) char shared[];
    block_place at(a, TILES * COLUMNS, TEAM);
    const lot_range range(a);
    // behind the lots: barriers, sums of queries, queries, scores of teams
    char * behind = shared + a.behind_lots;
    const lot_place place(shared, behind);
    at.take_turns(a.lot);
    behind += BARRIERS_BYTES;
    float4 * query_sums = (float4 *)behind;
    behind += a.heads_of_block * SUM_BYTES;
    uint2 * queries = (uint2 *)behind;
    float4 * told = (float4 *)(queries + a.heads_of_block * (DK / 16) * TILES * LANES);
    const lot_sources from(a, at.first_head, at.stream);
    clear_queries<DK, TILES>(a, queries);
    if (at.warp == 0) {
        make_barriers(a, place);
    }
    __syncthreads();
    ggml_cuda_pdl_sync();
    ggml_cuda_pdl_lc();

    query_rows<DK, AT_A_TIME> rows(a, at.warp, at.first_head, at.first_column);
    bring_first(a, at, range, from, place, 0, a.lots_ahead);
    if (at.member == 0) {
        prefetch_exact_rows(a, at);
    }
    put_queries<DK, TILES>(a, queries, at.first_head, at.first_column, rows);
    team_columns<DK, TILES> sums(
            take_queries<DK, VALUES_OF_MEMBER, TILES>(a, at, queries, query_sums, /*is_for_lot =*/false), at, told);

    add_team_exact_rows<UNITS>(a, at, sums);
    add_lots_and_store<UNITS, DV>(a, at, range, from, place, shared, sums);
}

}  // namespace kvtuner::cuda
