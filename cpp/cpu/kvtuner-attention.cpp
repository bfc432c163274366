#include "kvtuner-attention.h"

#include "kvtuner-attention-tile.h"
#include "kvtuner-mark.h"

#include "ggml-cpu/ggml-cpu-impl.h"

#include <cstdlib>

namespace kvtuner {

namespace {

constexpr int64_t ROWS = 96;           // query rows that share a tile, about
constexpr int64_t LEAST_ROWS = 8;      // and at least
constexpr int64_t SPLIT_ROWS = 64;     // up to so many rows of a KV head its tokens and channels can be split
constexpr int64_t AHEAD = 2;           // tiles whose rows are asked for before they are read
constexpr int64_t SPLIT_TOKENS = 256;  // and with more tokens: with fewer, waiting takes longer than it saves

bool can_split(const problem & p) {
    return p.n_query * p.group <= SPLIT_ROWS && p.n_token > SPLIT_TOKENS;
}

struct range {
    int64_t begin, end;

    range(int64_t n, int ith, int nth) : begin(n * ith / nth), end(n * (ith + 1) / nth) {
    }
};

// Whole blocks, each one thread's

using seen_tiles = std::vector<seen_tile>;

// the tiles of a source that some query of a block sees
void find_seen(const block & b, const source & from, int64_t n_tile, seen_tiles & found) {
    for (int64_t token = 0; token < from.n_token;) {
        const tile all = { &from, token, std::min(n_tile, from.n_token - token) };
        const seen_tile seen = seen_of(b, all);
        const tile & t = seen.t;
        token += all.n;
        if (from.rows && t.n > 0 && t.token > all.token && t.token + t.n == token && token < from.n_token) {
            token = t.token;  // a run that goes on has its tiles from where it begins
        } else if (t.n > 0) {
            found.push_back(seen);
        }
    }
}

// of the blocks of a node: all KV heads have the same mask
class seen_by_queries {
public:
    void begin(const blocks & all) {
        of_head = all.of_head;
        n_query = all.n_query;
        known.clear();
    }

    const seen_tiles & of(const problem & p, const block & b, int64_t n_tile) {
        const size_t i = b.stream * of_head + b.first / n_query;
        known.resize(std::max(known.size(), i + 1));
        if (!known[i].is_found) {
            known[i].is_found = true;
            for (int s = 0; s < p.n_source; ++s) {
                find_seen(b, p.sources[s], n_tile, known[i].tiles);
            }
        }
        return known[i].tiles;
    }

private:
    struct entry {
        bool is_found = false;
        seen_tiles tiles;
    };

    int64_t of_head = 0, n_query = 1;
    std::vector<entry> known;
};

struct whole_worker {
    seen_by_queries seen;
    scorer of_keys;
    accumulator of_values;
    std::vector<float> scores, factors;
    std::vector<int32_t> references;

    void attend(const problem & p, const block & b) {
        const int64_t n_tile = tile_tokens(p.size_k, b);
        const seen_tiles & tiles = seen.of(p, b, n_tile);
        of_keys.begin(p, b);
        of_values.begin(p, b, 0, p.size_v);
        scores.resize(b.n_row * n_tile);
        factors.resize(b.n_row);
        references.assign(b.n_row, NOTHING_SEEN);
        for (size_t i = 0; i < tiles.size(); ++i) {
            if (i + AHEAD < tiles.size()) {
                prefetch_scattered(p, tiles[i + AHEAD].t, b);
            }
            add(p, tiles[i], n_tile, b.n_row);
        }
        of_values.finish(p, references.data());
    }

private:
    void add(const problem & p, const seen_tile & now, int64_t n_tile, int64_t n_row) {
        const int64_t n = now.t.n;
        of_keys.score(p, now, scores.data(), n_tile);
        if (raise_references(scores.data(), n_tile, n, n_row, references.data(), factors.data())) {
            of_values.scale(factors.data());
        }
        weigh(scores.data(), n_tile, n, n_row, references.data());
        of_values.add(p, now.t, scores.data(), n_tile);
    }
};

// queries of a block: fewer where that gives every thread one
int64_t queries_of_block(const problem & p, int nth) {
    const int64_t most = std::max<int64_t>(1, ROWS / p.group);
    const int64_t least = std::max<int64_t>(1, LEAST_ROWS / p.group);
    const int64_t share = (p.n_query * p.n_head_kv * p.n_stream + nth - 1) / nth;
    return std::max(std::min({ most, share, p.n_query }), std::min(least, p.n_query));
}

void attend_whole(const problem & p, const blocks & all, int64_t n, int ith, int nth) {
    static thread_local whole_worker worker;
    worker.seen.begin(all);
    for (int64_t i = ith; i < n; i += nth) {
        worker.attend(p, all.at(p, i));
    }
}

// Split blocks, the last n: first the weights, whose tiles are shared out, then the values, whose channels are

struct split_layout {
    int64_t first, n;               // blocks
    int64_t n_tile, tiles, n_wide;  // tokens of a tile, tiles, tokens of a row of weights
    int64_t n_row;
    float * weights;       // [block][row][token], of what is seen of a tile from its beginning on
    int32_t * references;  // [block][tile][row], and which tokens of the tile these are: two numbers

    split_layout(const problem & p, const blocks & all, int64_t n_split, void * buffer) {
        first = all.n - n_split;
        n = n_split;
        n_tile = tile_tokens(p.size_k, all.at(p, 0));
        tiles = n_tiles(p, n_tile);
        n_wide = tiles * n_tile;
        n_row = all.at(p, 0).n_row;
        weights = (float *)buffer;
        references = (int32_t *)(weights + n * n_row * n_wide);
    }

    size_t size() const {
        return n * (n_row * n_wide + (n_row + 2) * tiles) * sizeof(float);
    }

    float * weights_of(int64_t block, int64_t tile) const {
        return weights + block * n_row * n_wide + tile * n_tile;
    }

    int32_t * references_of(int64_t block, int64_t tile) const {
        return references + (block * tiles + tile) * (n_row + 2);
    }

    void set_seen(int64_t block, int64_t at, const tile & whole, const tile & seen) const {
        references_of(block, at)[n_row] = (int32_t)(seen.token - whole.token);
        references_of(block, at)[n_row + 1] = (int32_t)seen.n;
    }

    tile seen(const problem & p, int64_t block, int64_t at) const {
        const tile whole = tile_at(p, at, n_tile);
        return { whole.from, whole.token + references_of(block, at)[n_row], references_of(block, at)[n_row + 1] };
    }
};

void find_weights(const problem & p, const blocks & all, const split_layout & l, int ith, int nth) {
    static thread_local scorer of_keys;
    static thread_local std::vector<float> factors;
    factors.resize(l.n_row);
    const range mine(l.n * l.tiles, ith, nth);
    int64_t block_now = -1;
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t block = i / l.tiles, at = i % l.tiles;
        const kvtuner::block b = all.at(p, l.first + block);
        if (block != block_now) {
            of_keys.begin(p, b);
            block_now = block;
        }
        if (at + AHEAD < l.tiles) {
            prefetch_scattered(p, tile_at(p, at + AHEAD, l.n_tile), b);
        }
        float * weights = l.weights_of(block, at);
        int32_t * references = l.references_of(block, at);
        const tile whole = tile_at(p, at, l.n_tile);
        const seen_tile seen = seen_of(b, whole);
        const int64_t n = seen.t.n;
        l.set_seen(block, at, whole, seen.t);
        std::fill(references, references + l.n_row, NOTHING_SEEN);
        if (n > 0) {
            of_keys.score(p, seen, weights, l.n_wide);
            raise_references(weights, l.n_wide, n, l.n_row, references, factors.data());
            weigh(weights, l.n_wide, n, l.n_row, references);
        }
    }
}

struct split_worker {
    accumulator of_values;
    std::vector<float> scaled;
    std::vector<int32_t> references;

    void attend(const problem & p, const block & b, const split_layout & l, int64_t block, int64_t first, int64_t n) {
        references.assign(l.n_row, NOTHING_SEEN);
        for (int64_t tile = 0; tile < l.tiles; ++tile) {
            for (int64_t r = 0; r < l.n_row; ++r) {
                references[r] = std::max(references[r], l.references_of(block, tile)[r]);
            }
        }
        of_values.begin(p, b, first, n);
        for (int64_t tile = 0; tile < l.tiles; ++tile) {
            if (l.seen(p, block, tile).n > 0) {
                add_tile(p, l, block, tile);
            }
        }
        of_values.finish(p, references.data());
    }

private:
    void add_tile(const problem & p, const split_layout & l, int64_t block, int64_t i) {
        const int32_t * of_tile = l.references_of(block, i);
        const tile now = l.seen(p, block, i);
        scaled.resize(l.n_tile * l.n_row);
        for (int64_t r = 0; r < l.n_row; ++r) {
            const float * weights = l.weights_of(block, i) + r * l.n_wide;
            const vec factor = splat(power_of_two(of_tile[r] - references[r]));
            for (int64_t t = 0; t < now.n; t += LANES) {
                store(&scaled[r * l.n_tile + t], load<vec>(weights + t) * factor);
            }
        }
        of_values.add(p, now, scaled.data(), l.n_tile);
    }
};

// into how many slices of channels the values of a block can be cut
int64_t n_slices(const problem & p) {
    int64_t unit = LANES;
    for (int i = 0; i < p.n_source; ++i) {
        unit = std::max<int64_t>(unit, ggml_blck_size(p.sources[i].v->type));
    }
    return p.size_v % unit == 0 ? p.size_v / unit : 1;
}

void attend_split(const problem & p, const blocks & all, int64_t n_split, const ggml_compute_params * params) {
    static thread_local split_worker worker;
    const split_layout l(p, all, n_split, params->wdata);
    find_weights(p, all, l, params->ith, params->nth);
    ggml_barrier(params->threadpool);
    const int64_t slices = n_slices(p), width = p.size_v / slices;
    const range mine(l.n * slices, params->ith, params->nth);
    for (int64_t i = mine.begin; i < mine.end;) {
        const int64_t block = i / slices, first = i % slices;
        const int64_t n = std::min(slices - first, mine.end - i);
        worker.attend(p, all.at(p, l.first + block), l, block, first * width, n * width);
        i += n;
    }
}

// the blocks whose tokens and channels are split between nth threads: those that do not go round
int64_t n_split(const blocks & all, int nth) {
    return all.n >= 4 * nth ? 0 : all.n % nth;
}

size_t split_size(const problem & p, int nth) {
    const blocks all(p, p.n_query);
    return can_split(p) ? split_layout(p, all, n_split(all, nth), nullptr).size() : 0;
}

void attend(const problem & p, const ggml_compute_params * params) {
    const int ith = params->ith, nth = params->nth;
    if (!can_split(p) || params->wsize < split_size(p, nth)) {
        const blocks all(p, queries_of_block(p, nth));
        return attend_whole(p, all, all.n, ith, nth);
    }
    const blocks all(p, p.n_query);
    const int64_t n = n_split(all, nth);
    attend_whole(p, all, all.n - n, ith, nth);
    if (n > 0) {
        attend_split(p, all, n, params);
    }
}

// attention over a cache of a plan carries a mark; without one it is upstream's, bit for bit
bool is_ours(const ggml_tensor * node) {
    static const char * const choice = getenv("KVTUNER_ATTENTION");  // all | none: for tests and comparisons
    if (kvtuner_has_exact(node) || kvtuner_has_centers(node)) {
        return true;  // no other kernel reads these
    }
    if (choice) {
        return strcmp(choice, "all") == 0;
    }
    return kvtuner_is_marked(node);
}

bool can_do(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    return q->type == GGML_TYPE_F32 && !ggml_is_empty(q) && !ggml_is_empty(k) && q->ne[2] % k->ne[2] == 0 &&
           kvtuner_row_reader_of(k->type) && kvtuner_row_reader_of(v->type) && k->ne[2] == v->ne[2] &&
           k->ne[3] == v->ne[3] && k->ne[3] == q->ne[3] && (!mask || mask->ne[2] == 1) && is_ours(node);
}

}  // namespace

}  // namespace kvtuner

size_t kvtuner_flash_attn_size(const ggml_tensor * node, int n_threads) {
    using namespace kvtuner;
    return can_do(node) ? split_size(problem_of(const_cast<ggml_tensor *>(node)), n_threads) : 0;
}

bool kvtuner_flash_attn(const ggml_compute_params * params, ggml_tensor * node) {
    using namespace kvtuner;
    if (params->use_ref || !can_do(node)) {
        return false;
    }
    problem p = problem_of(node);
    leave_out_the_rest(p);
    attend(p, params);
    return true;
}
