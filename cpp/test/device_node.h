// A node of the CPU's memory, with all that it reads, on another device.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstring>
#include <map>
#include <vector>

class device_node {
public:
    device_node(ggml_backend_t backend, const ggml_tensor * node)
        : backend(backend), ctx(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true })) {
        out = mirror(node);
        graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
        for (const auto & [from, to] : mirrored) {
            if (!to->view_src && to != out) {
                ggml_backend_tensor_set(to, from->data, 0, ggml_nbytes(from));
            }
        }
    }

    bool is_supported() const {
        return ggml_backend_supports_op(backend, out);
    }

    std::vector<float> run() {
        std::vector<float> values(ggml_nelements(out));
        ggml_backend_tensor_memset(out, 0xff, 0, ggml_nbytes(out));
        ggml_backend_graph_compute(backend, graph);
        ggml_backend_tensor_get(out, values.data(), 0, ggml_nbytes(out));
        return values;
    }

private:
    ggml_tensor * mirror(const ggml_tensor * t) {
        if (!t || mirrored.count(t)) {
            return t ? mirrored[t] : nullptr;
        }
        ggml_tensor * copy;
        if (t->view_src) {
            copy = ggml_view_4d(ctx.get(), mirror(t->view_src), t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->nb[1],
                                t->nb[2], t->nb[3], t->view_offs);
        } else {
            copy = ggml_dup_tensor(ctx.get(), t);
            copy->op = t->op;
            memcpy(copy->op_params, t->op_params, sizeof(t->op_params));
            for (int i = 0; i < GGML_MAX_SRC; ++i) {
                copy->src[i] = mirror(t->src[i]);
            }
        }
        return mirrored[t] = copy;
    }

    ggml_backend_t backend;
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_cgraph * graph;
    ggml_tensor * out;
    std::map<const ggml_tensor *, ggml_tensor *> mirrored;
};
