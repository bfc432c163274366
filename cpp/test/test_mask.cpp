// Masks that are made of two runs against the definition, cell by cell, over random histories of a stream: sequences
// that share it or have it alone, holes, tokens later than the query.

#include "kvtuner-mask.h"

#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr uint32_t N_CELLS = 64;
constexpr int N_HISTORIES = 20000;
constexpr uint16_t KEEP = 0, DROP = 0xfc00, BEFORE = 7;

int n_failures = 0;

void expect(bool is_right, const std::string & what, int history) {
    if (!is_right) {
        printf("history %d: %s\n", history, what.c_str());
        ++n_failures;
    }
}

std::vector<uint16_t> defined_mask(const llama_kv_cells & cells, llama_seq_id seq, llama_pos pos) {
    std::vector<uint16_t> row(N_CELLS, DROP);
    for (uint32_t i = 0; i < N_CELLS; ++i) {
        if (!cells.is_empty(i) && cells.seq_has(i, seq) && cells.pos_get(i) <= pos) {
            row[i] = KEEP;
        }
    }
    return row;
}

struct history {
    llama_kv_cells cells;
    bool is_plain = true;  // one sequence, from the first cell on, without holes
    llama_pos last = -1;
};

history random_history(std::mt19937 & random) {
    history h;
    h.cells.resize(N_CELLS);
    const uint32_t n = random() % N_CELLS, n_seq = random() % 3 ? 1 : 2;
    const bool has_holes = random() % 3 == 0, is_shared = random() % 4 == 0;
    for (uint32_t i = 0; i < n; ++i) {
        if (has_holes && random() % 8 == 0) {
            h.is_plain = false;
            continue;
        }
        const llama_seq_id seq = (llama_seq_id)(random() % n_seq);
        h.cells.pos_set(i, (llama_pos)i);
        h.cells.seq_add(i, seq);
        if (is_shared) {
            h.cells.seq_add(i, 2);
        }
        h.is_plain = h.is_plain && seq == 0;
        h.last = (llama_pos)i;
    }
    return h;
}

void check(std::mt19937 & random, int i, int & n_filled) {
    const history h = random_history(random);
    const llama_pos pos = h.last + 1 - (llama_pos)(random() % 4 == 0 ? random() % 8 : 0);
    const llama_seq_id seq = (llama_seq_id)(random() % 5 == 0 ? 2 : 0);
    std::vector<uint16_t> row(N_CELLS, BEFORE);
    if (kvtuner_fill_mask<uint16_t>(h.cells, seq, pos, N_CELLS, KEEP, DROP, row.data())) {
        ++n_filled;
        expect(row == defined_mask(h.cells, seq, pos), "another mask", i);
        return;
    }
    expect(row == std::vector<uint16_t>(N_CELLS, BEFORE), "refused, but something was written", i);
    expect(seq != 0 || pos < h.last || !h.is_plain || h.last < 0, "a plain sequence was refused", i);
}

}  // namespace

int main() {
    std::mt19937 random(1);
    int n_filled = 0;
    for (int i = 0; i < N_HISTORIES; ++i) {
        check(random, i, n_filled);
    }
    expect(n_filled > N_HISTORIES / 10 && n_filled < N_HISTORIES, "all or nothing was filled", -1);
    printf("%d histories, %d filled, %d failures\n", N_HISTORIES, n_filled, n_failures);
    return n_failures ? 1 : 0;
}
