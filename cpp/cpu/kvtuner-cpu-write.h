// New keys and values on the CPU: rotated, or scaled, rotated, centered, converted and stored in one step. Bit for bit
// what upstream's steps give.
#pragma once

#include "ggml.h"
#include "ggml-cpu.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_cgraph;
struct ggml_compute_params;
struct kvtuner_writes;

// the writes of a graph that are one step here, kept while this thread computes the graph
const struct kvtuner_writes * kvtuner_cpu_writes(const struct ggml_cgraph * graph);

// Does this thread's share of the write that starts with node i, if one does. True: nothing is left of the node to do.
// No writes (null): false.
bool kvtuner_cpu_write(const struct kvtuner_writes * writes, const struct ggml_compute_params * params, int i);

// whether a thread that is done with node i need not wait for the others
bool kvtuner_cpu_goes_on(const struct kvtuner_writes * writes, int i);

// Computes a MUL_MAT with a Hadamard matrix. False: nothing was done, upstream's code takes it.
bool kvtuner_cpu_rotate(const struct ggml_compute_params * params, struct ggml_tensor * node);

// how a SET_ROWS converts what it stores
ggml_from_float_t kvtuner_cpu_conversion(const struct ggml_tensor * set_rows);

#ifdef __cplusplus
}
#endif
