// What a thread does with a tile, some tokens of a KV head, for a block of query rows: scores against the keys, weights
// from the scores, weighted values. Scores and weights are [token][row].
//
// Weights are powers of two of the scores less a reference that is an integer: a tile that needs another reference
// multiplies what was summed up before by a power of two, which rounds nothing. All sums run in the order of the
// tokens. So a row's result is the same to the bit wherever tiles begin, whichever rows share a block, and wherever in
// the cache the tokens lie.
#pragma once

#include "kvtuner-attention-problem.h"

#include <vector>

namespace kvtuner {

constexpr int32_t NOTHING_SEEN = (int32_t)LOWEST;  // as a reference

// Tokens of a tile: its rows as floats fit the first cache. Few query rows need little of it, and with short tiles the
// next rows arrive from memory while these are worked on.
inline int64_t tile_tokens(int64_t head_size, const block & b) {
    const int64_t most = b.n_row <= 16 ? 16 : 64;
    return std::max<int64_t>(16, std::min<int64_t>(most, 4096 / head_size));
}

// scores of a block's rows
class scorer {
public:
    void begin(const problem & p, const block & b);

    // scores [n][n_wide] of n tokens from `token` on; false, and no scores, where no query sees any of them
    bool score(const problem & p, int64_t token, int64_t n, float * scores);

private:
    block b = {};
    std::vector<float> queries, keys, bias, slopes;

    bool read_bias(const problem & p, int64_t token, int64_t n, bool & has_bias);
    void add_bias(int64_t n, float * scores) const;
};

// Moves the references [n_wide] of rows whose scores [n][n_wide] have outgrown them. True where one moved: factors
// [n_wide] are what earlier sums are to be multiplied by.
bool raise_references(const float * scores, int64_t n, int64_t n_wide, int32_t * references, float * factors);

// scores become weights
void weigh(float * scores, int64_t n, int64_t n_wide, const int32_t * references);

// weighted values of a block's rows, and the sums of their weights
class accumulator {
public:
    // channels `first` to `first + n_channel` of the values
    void begin(const problem & p, const block & b, int64_t first, int64_t n_channel);
    void scale(const float * factors);
    void add(const problem & p, int64_t token, int64_t n, const float * weights);
    void finish(const problem & p, const int32_t * references) const;

private:
    block b = {};
    int64_t first = 0, n_channel = 0, wide = 0;
    std::vector<float> values, output, sums;
};

}  // namespace kvtuner
