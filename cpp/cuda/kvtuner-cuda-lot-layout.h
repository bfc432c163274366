// How lots lie in shared memory and are copied there, and what a block of threads has beside them.
#pragma once

#include "kvtuner-cuda-launch.cuh"
#include "kvtuner-cuda-node.cuh"

namespace kvtuner::cuda {

constexpr int LOT_ALIGNMENT = 128;  // bytes of shared memory

// Lots for the heads and tokens of a block, which so many warps bring. False: they cannot be copied.
bool set_carried_lot(const ggml_tensor * node, attention_args & args, bool takes_rows, int carriers);

// Lots for so many heads and tokens. False: they cannot be copied.
bool set_lot(const ggml_tensor * node, attention_args & args, bool takes_rows, int n_heads, int sub_warps);

// of queries as halves
int query_bytes(const attention_args & args, int size_k, int tiles);

// those of them that lie in the place of a lot
int queries_in_lot(const attention_args & args, int size_k, int tiles);

// what a block of threads needs beside the lots: barriers, sums of queries, queries that do not lie in the place of a
// lot, and scores of teams
int bytes_beside(const attention_args & args, int size_k, int size_v, int tiles);

// what the sums of all teams of a block of threads need
int merge_bytes(const attention_args & args, int size_v, int tiles);

// where so many lots are in shared memory at once
int lots_bytes(const ggml_tensor * node, const attention_args & args, int tiles, int n_lots);

// as many lots as there is room for
void set_lots(const ggml_tensor * node, attention_args & args, int tiles, int limit);

}  // namespace kvtuner::cuda
