// Keys that are less of a center of their block of positions: q.c of the block's queries, where their sums of q.k
// begin.
#pragma once

#include "kvtuner-attention-problem.h"

#include <vector>

namespace kvtuner {

constexpr int64_t CENTERS = 16;  // whose products are computed at once

class center_products {
public:
    void begin(const problem & p, const block & b);

    // Of the tokens of a tile, which belong to one block of positions: [row]. Null where they belong to several.
    const float * of_tile(const problem & p, const float * queries, const tile & t);

    // those of each token, [row][token], rows `wide` floats apart; zeros for what pads the tile to n
    void fill(const problem & p, const float * queries, const tile & t, float * scores, int64_t wide, int64_t n);

private:
    block b = {};
    int32_t now = -1;               // the block of positions that `rows` are of
    std::vector<bool> is_computed;  // [group of centers]
    std::vector<float> products;    // [group of centers][row][center]
    std::vector<float> centers, rows;

    const float * of_center(const problem & p, const float * queries, int32_t i);
    void compute(const problem & p, const float * queries, int64_t group);
};

}  // namespace kvtuner
