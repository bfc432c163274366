// What a simdgroup sums of its columns, step by step: weights of scores, and values by these weights.
#pragma once

#include "kvtuner-metal-scores.h"

// tokens of the cache, or those that have rows of their own
struct kvtuner_source {
    kvtuner_rows keys;
    kvtuner_rows values;
    device const half * mask;   // of the query of the lane's column
    device const int * rows;    // of each token, where they are not in order; negative for none
    device const int * blocks;  // of positions, of each token
    int n;
};

// what a lane knows of its column, and has summed
struct kvtuner_column {
    bool is_one;  // not there to fill up COLUMNS
    float slope;  // of ALiBi
    float most;
    float sum;
    int center_block;  // whose score is known; negative for none
    float center_score;
};

// what keys that are less of the center of their block of positions lack: most steps are of the block before
static inline float kvtuner_center_score(device const char * centers, uint64_t stride, int block,
                                         thread const half4 * q, thread kvtuner_column & column, kvtuner_lane lane) {
    const int least = simd_min(block);
    const bool is_one = least == simd_max(block);
    if (!is_one || least != column.center_block) {
        const kvtuner_rows rows = { centers, stride, KVTUNER_METAL_F16, false, 0, 0, block };
        column.center_score = kvtuner_product(rows, q, lane);
        column.center_block = is_one ? least : -1;
    }
    return column.center_score;
}

// where the largest score of a column grows, what was summed counts less
static inline void kvtuner_raise(float most, thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane) {
    if (simd_max(most - column.most) <= 0.0f) {
        return;
    }
    const float factor = exp(column.most - most);
    column.sum *= factor;
    column.most = most;
    FOR_UNROLL(short c = 0; c < COLUMNS; ++c) {
        const float of_column = simd_shuffle(factor, (ushort)(lane.first + c));
        FOR_UNROLL(short i = 0; i < V_QUADS; ++i) {
            o[c * V_QUADS + i] *= of_column;
        }
    }
}

// adds the tokens of steps from `begin` up to `end`
static inline void kvtuner_attend(constant kvtuner_metal_attention_args & args, device const char * centers,
                                  thread kvtuner_source & from, int begin, int end, thread const half4 * q,
                                  thread float4 * o, thread kvtuner_column & column, kvtuner_lane lane) {
    for (int step = begin; step < end; ++step) {
        const int token = step * TOKENS + lane.all / COLUMNS;
        const int inside = min(token, from.n - 1);
        const int row = from.keys.in_order ? inside : from.rows[inside];
        float mask = KVTUNER_METAL_UNSEEN;
        if (column.is_one && token < from.n && row >= 0) {
            mask = FC_kvtuner_has_mask ? (float)from.mask[token] : 0.0f;
        }
        if (simd_max(mask) <= KVTUNER_METAL_UNSEEN) {
            continue;
        }
        from.keys.first = from.values.first = step * TOKENS;
        from.keys.row = from.values.row = max(row, 0);
        float score = kvtuner_product(from.keys, q, lane);
        if (FC_kvtuner_has_centers) {
            const int block = row < 0 ? 0 : from.blocks[inside];
            score += kvtuner_center_score(centers, args.center_block, block, q, column, lane);
        }
        score *= args.scale;
        if (args.cap != 0.0f) {
            score = args.cap * precise::tanh(score);
        }
        const bool is_seen = mask > KVTUNER_METAL_UNSEEN;
        score += column.slope * mask;
        float most = is_seen ? max(score, column.most) : column.most;
        FOR_UNROLL(short n = COLUMNS; n < N_SIMDWIDTH; n *= 2) {
            most = max(most, simd_shuffle_xor(most, (ushort)n));
        }
        kvtuner_raise(most, o, column, lane);
        const float weight = is_seen ? exp(score - most) : 0.0f;
        column.sum += weight;
        kvtuner_add_values(from.values, weight, o, lane);
    }
}
