// What a simdgroup does with some rows of keys or values: products with queries, sums by weights.
#pragma once

#include "kvtuner-metal-lanes.h"

// rows of one head: in order from `first` to `last`, or those that lanes say
struct kvtuner_rows {
    device const char * data;
    uint64_t stride;
    short kind;
    bool in_order;
    int first;
    int last;
    int row;  // of the lane's token
};

// where row i of a step begins, of those of the lane's half
static inline device const char * kvtuner_row(thread const kvtuner_rows & rows, kvtuner_lane lane, short i) {
    const int row = rows.in_order ? min(rows.first + lane.first / COLUMNS + i, rows.last)
                                  : simd_shuffle(rows.row, (ushort)(lane.first + i * COLUMNS));
    return rows.data + row * rows.stride;
}

// what the lanes of a token have, added up: a lane gets the sum with the number of its last bits
static inline float kvtuner_add_up(thread float * sums, short lane) {
    FOR_UNROLL(short n = SUMS / 2; n > 0; n /= 2) {
        const bool is_upper = (lane & n) != 0;
        FOR_UNROLL(short i = 0; i < n; ++i) {
            const float kept = is_upper ? sums[i + n] : sums[i];
            const float given = is_upper ? sums[i] : sums[i + n];
            sums[i] = kept + simd_shuffle_xor(given, (ushort)n);
        }
    }
    FOR_UNROLL(short n = SUMS; n < LANES; n *= 2) {
        sums[0] += simd_shuffle_xor(sums[0], (ushort)n);
    }
    return sums[0];
}

// of the key of token lane / COLUMNS and the query of column lane % COLUMNS
static inline float kvtuner_product(thread const kvtuner_rows & keys, thread const half4 * q, kvtuner_lane lane) {
    float product = 0.0f;
    for (short chunk = 0; chunk < CHUNKS; ++chunk) {
        float sums[SUMS];
        FOR_UNROLL(short t = 0; t < TOKENS_OF_CHUNK; ++t) {
            device const char * row = kvtuner_row(keys, lane, chunk * TOKENS_OF_CHUNK + t);
            FOR_UNROLL(short c = 0; c < COLUMNS; ++c) {
                sums[t * COLUMNS + c] = 0.0f;
            }
            FOR_UNROLL(short i = 0; i < K_QUADS; ++i) {
                const short quad = i * LANES + lane.mine;
                if (quad < DK / 4) {
                    const float4 x = kvtuner_quad(keys.kind, row, quad);
                    FOR_UNROLL(short c = 0; c < COLUMNS; ++c) {
                        sums[t * COLUMNS + c] += dot(x, float4(q[c * K_QUADS + i]));
                    }
                }
            }
        }
        const float sum = kvtuner_add_up(sums, lane.all);
        product = lane.mine / SUMS == chunk ? sum : product;
    }
    return product;
}

static inline void kvtuner_add_values(thread const kvtuner_rows & values, float weight, thread float4 * o,
                                      kvtuner_lane lane) {
    for (short chunk = 0; chunk < CHUNKS; ++chunk) {
        FOR_UNROLL(short t = 0; t < TOKENS_OF_CHUNK; ++t) {
            const short token = chunk * TOKENS_OF_CHUNK + t;
            device const char * row = kvtuner_row(values, lane, token);
            float weights[COLUMNS];
            FOR_UNROLL(short c = 0; c < COLUMNS; ++c) {
                weights[c] = simd_shuffle(weight, (ushort)(lane.first + token * COLUMNS + c));
            }
            FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
                const short quad = i * LANES + lane.mine;
                if (quad < DV / 4) {
                    const float4 x = kvtuner_quad(values.kind, row, quad);
                    FOR_UNROLL(short c = 0; c < COLUMNS; ++c) {
                        o[c * V_QUADS + i] += x * weights[c];
                    }
                }
            }
        }
    }
}
