// The mask of a query whose sequence has a stream to itself, without a look at each cell.
#pragma once

#include "llama-kv-cells.h"

#include <algorithm>

// Fills a row of n_kv cells of a causal mask: `keep` for those that a query at `pos` sees. False, and nothing is done:
// not all cells from the first to the last used one are of this sequence and no later than the query.
template <typename T>
bool kvtuner_fill_mask(const llama_kv_cells & cells, llama_seq_id seq, llama_pos pos, int64_t n_kv, T keep, T drop,
                       T * row) {
    const int64_t n = cells.get_used();
    if ((int64_t)cells.seq_pos_get(seq).size() != n || cells.used_max_p1() != n || cells.seq_pos_max(seq) > pos) {
        return false;
    }
    std::fill(row, row + std::min(n, n_kv), keep);
    std::fill(row + std::min(n, n_kv), row + n_kv, drop);
    return true;
}
