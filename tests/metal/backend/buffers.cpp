// Stands in for upstream's ggml-metal-device.m and ggml-metal-context.m: buffers in ordinary memory, graphs when they
// are encoded.
#include "ggml-metal-context.h"
#include "ggml-metal-device.h"

#include "ggml-impl.h"
#include "ggml-metal-ops.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "commands.h"

struct ggml_metal_buffer {
    char * begin;
    size_t size;
    bool owned;
};
struct ggml_metal {
    ggml_metal_device_t device;
};

// NaN until somebody writes
ggml_metal_buffer_t ggml_metal_buffer_init(ggml_metal_device_t, size_t size, bool) {
    void * begin = aligned_alloc(4096, (size + 4096) / 4096 * 4096);
    memset(begin, 0xFF, size);
    return new ggml_metal_buffer{ (char *)begin, size, true };
}
ggml_metal_buffer_t ggml_metal_buffer_map(ggml_metal_device_t, void * ptr, size_t size, size_t) {
    return new ggml_metal_buffer{ (char *)ptr, size, false };
}
void ggml_metal_buffer_free(ggml_metal_buffer_t buf) {
    if (buf->owned) {
        free(buf->begin);
    }
    delete buf;
}
void * ggml_metal_buffer_get_base(ggml_metal_buffer_t buf) {
    return buf->begin;
}
bool ggml_metal_buffer_is_shared(ggml_metal_buffer_t) {
    return true;
}
void ggml_metal_buffer_memset_tensor(ggml_metal_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset,
                                     size_t size) {
    memset((char *)tensor->data + offset, value, size);
}
void ggml_metal_buffer_set_tensor(ggml_metal_buffer_t, ggml_tensor * tensor, const void * data, size_t offset,
                                  size_t size) {
    memcpy((char *)tensor->data + offset, data, size);
}
void ggml_metal_buffer_get_tensor(ggml_metal_buffer_t, const ggml_tensor * tensor, void * data, size_t offset,
                                  size_t size) {
    memcpy(data, (const char *)tensor->data + offset, size);
}
bool ggml_metal_buffer_cpy_tensor(ggml_metal_buffer_t, const ggml_tensor *, ggml_tensor *) {
    return false;
}
void ggml_metal_buffer_clear(ggml_metal_buffer_t buf, uint8_t value) {
    memset(buf->begin, value, buf->size);
}
ggml_metal_buffer_id ggml_metal_buffer_get_id(ggml_metal_buffer_t buf, const ggml_tensor * t) {
    return { buf->begin, (size_t)((char *)t->data - buf->begin) };
}

ggml_metal_t ggml_metal_init(ggml_metal_device_t dev) {
    return new ggml_metal{ dev };
}
void ggml_metal_free(ggml_metal_t ctx) {
    delete ctx;
}
const char * ggml_metal_get_name(ggml_metal_t ctx) {
    return ggml_metal_device_get_props(ctx->device)->name;
}
void ggml_metal_synchronize(ggml_metal_t) {
}
void ggml_metal_set_tensor_async(ggml_metal_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    memcpy((char *)tensor->data + offset, data, size);
}
void ggml_metal_get_tensor_async(ggml_metal_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    memcpy(data, (const char *)tensor->data + offset, size);
}
bool ggml_metal_cpy_tensor_async(ggml_metal_t, ggml_metal_t, const ggml_tensor *, ggml_tensor *) {
    return false;
}
static int number(const char * variable, int otherwise) {
    const char * text = getenv(variable);
    return text ? atoi(text) : otherwise;
}
static bool encode(ggml_metal_t ctx, ggml_cgraph * gf, int first, int end, command_buffer & to) {
    ggml_metal_fusion_info * fusions = ggml_metal_device_get_fusion_info(ctx->device);
    ggml_metal_op_t ops =
            ggml_metal_op_init(ctx->device, (ggml_metal_cmd_buf_t)&to, gf, fusions, first, end, false, false, 0);
    int done = 1;
    for (int i = 0; i < ggml_metal_op_n_nodes(ops) && done > 0; i += done) {
        done = ggml_metal_op_encode(ops, i);
    }
    ggml_metal_op_free(ops);
    return done > 0;
}
// As upstream's command buffers, each of which has an encoder: KVTUNER_METAL_NODES is how many nodes one takes, and
// KVTUNER_METAL_THREADS how many threads encode at once.
ggml_status ggml_metal_graph_compute(ggml_metal_t ctx, ggml_cgraph * gf) {
    const int each = number("KVTUNER_METAL_NODES", gf->n_nodes), n_thread = number("KVTUNER_METAL_THREADS", 1);
    const int n_part = each > 0 ? (gf->n_nodes + each - 1) / each : 0;
    std::vector<command_buffer> parts(n_part);
    std::atomic<bool> done{ true };
    std::vector<std::thread> threads;
    for (int thread = 0; thread < n_thread; ++thread) {
        threads.emplace_back([&, thread] {
            for (int i = thread; i < n_part; i += n_thread) {
                done = encode(ctx, gf, i * each, std::min((i + 1) * each, gf->n_nodes), parts[i]) && done;
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    for (const command_buffer & part : parts) {
        part.run();
    }
    return done ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;
}
void ggml_metal_graph_optimize(ggml_metal_t, ggml_cgraph *) {
}
void ggml_metal_event_record(ggml_metal_t, ggml_metal_event_t) {
}
void ggml_metal_event_wait(ggml_metal_t, ggml_metal_event_t) {
}
ggml_metal_event_t ggml_metal_get_ev_cpy(ggml_metal_t) {
    return nullptr;
}
void ggml_metal_set_n_cb(ggml_metal_t, int) {
}
void ggml_metal_set_abort_callback(ggml_metal_t, ggml_abort_callback, void *) {
}
bool ggml_metal_supports_family(ggml_metal_t, int) {
    return true;
}
void ggml_metal_capture_next_compute(ggml_metal_t) {
}
