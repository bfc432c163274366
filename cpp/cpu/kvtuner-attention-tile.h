// What a thread does with a tile, some tokens of a KV head, for a block of query rows: scores against the keys, weights
// from the scores, weighted values. Scores and weights are [row][token], rows `wide` floats apart.
//
// Weights are powers of two of the scores less a reference that is an integer: a tile that needs another reference
// multiplies what was summed up before by a power of two, which rounds nothing. All sums run in the order of the
// tokens. So a row's result is the same to the bit wherever tiles begin, whichever rows share a block, and wherever in
// the cache the tokens lie.
#pragma once

#include "kvtuner-attention-centers.h"
#include "kvtuner-attention-problem.h"

#include <vector>

namespace kvtuner {

constexpr int32_t NOTHING_SEEN = (int32_t)LOWEST;  // as a reference
constexpr int64_t TILE_UNIT = 16;                  // tokens that a tile is padded to; padding has no weight
constexpr int64_t MOST_TOKENS = 64;                // of a tile
constexpr int64_t FEW_ROWS = 16;                   // of queries: tiles are read as fast as they are worked on

// Tokens of a tile: its rows as floats take 32 KiB at most. Few query rows need less, and with short tiles the
// next rows arrive from memory while these are worked on.
inline int64_t tile_tokens(int64_t head_size, const block & b) {
    const int64_t most = b.n_row <= FEW_ROWS ? MOST_TOKENS / 2 : MOST_TOKENS;
    return std::max<int64_t>(TILE_UNIT, std::min<int64_t>(most, 8192 / head_size / TILE_UNIT * TILE_UNIT));
}

// asks for the rows of a tile, which is read soon, if they do not lie in order and memory is what few query rows wait
// for
void prefetch_scattered(const problem & p, const tile & t, const block & b);

// what is left of a tile without the tokens before the first and after the last that some query sees
struct seen_tile {
    tile t;
    bool has_bias;  // the mask adds something to the score of a token
};

seen_tile seen_of(const block & b, const tile & all);

// scores of a block's rows
class scorer {
public:
    void begin(const problem & p, const block & b);

    // scores of the tokens that are left of a tile, padded
    void score(const problem & p, const seen_tile & seen, float * scores, int64_t wide);

private:
    block b = {};
    int64_t n_tile = 0;
    center_products centers;
    std::vector<float> queries, keys, bias, slopes;

    void read_bias(const tile & t);
    void multiply(const problem & p, const tile & t, float * scores, int64_t wide, int64_t n);
    void add_bias(float * scores, int64_t wide, int64_t n) const;
};

// Moves the references of rows whose scores of n tokens have outgrown them. True where one moved: factors [n_row] are
// what earlier sums are to be multiplied by.
bool raise_references(const float * scores, int64_t wide, int64_t n, int64_t n_row, int32_t * references,
                      float * factors);

// scores become weights
void weigh(float * scores, int64_t wide, int64_t n, int64_t n_row, const int32_t * references);

// weighted values of a block's rows, and the sums of their weights
class accumulator {
public:
    // channels `first` to `first + n_channel` of the values
    void begin(const problem & p, const block & b, int64_t first, int64_t n_channel);
    void scale(const float * factors);
    void add(const problem & p, const tile & t, const float * weights, int64_t n_apart);
    void finish(const problem & p, const int32_t * references) const;

private:
    block b = {};
    int64_t first = 0, n_channel = 0, wide = 0;
    std::vector<float> values, output, sums;
};

}  // namespace kvtuner
