#include "write_graphs.h"

#include <cstdlib>
#include <new>

static size_t n_allocated = 0;

void * operator new(size_t size) {
    ++n_allocated;
    if (void * memory = malloc(size)) {
        return memory;
    }
    throw std::bad_alloc();
}

void operator delete(void * memory) noexcept {
    free(memory);
}

void operator delete(void * memory, size_t) noexcept {
    free(memory);
}

// a graph without a rotation and a center, as most without a plan: nothing is kept of its nodes
void test_other_graphs() {
    ggml_context_ptr ctx(ggml_init({ N_NODES * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, 128, N_CELLS);
    ggml_tensor * rows = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 64, 2, 3);
    ggml_tensor * indices = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, 3);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph,
                              ggml_set_rows(ctx.get(), cache, ggml_reshape_2d(ctx.get(), rows, 128, 3), indices));
    const size_t before = n_allocated;
    const kvtuner_writes writes(*graph, [](const kvtuner_write &) { return true; }, true);
    const bool is_kept = n_allocated != before;
    expect(!is_kept, "a graph without a write: the nodes were kept");
    expect(!writes.unless_none(), "a graph without a write: one was found");
}
