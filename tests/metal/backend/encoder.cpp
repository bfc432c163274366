// Stands in for upstream's ggml-metal-device.m: pipelines, and the encoder, which keeps what it is given until all of a
// graph is encoded.
#include "ggml-metal-device.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "commands.h"

static constexpr int n_slots = 31;

struct ggml_metal_cv {
    std::map<int, long> values;
};
struct ggml_metal_pipeline {
    MetalKernel * kernel;
};
struct ggml_metal_library {
    ggml_metal_device_t device;
    ggml_metal_pipelines_t pipelines;
    std::string text;  // the file that it is compiled from; empty for upstream's
    std::recursive_mutex lock{};
};

struct ggml_metal_encoder {
    command_buffer * to;
    dispatched next;
};

ggml_metal_cv_t ggml_metal_cv_init(void) {
    return new ggml_metal_cv;
}
void ggml_metal_cv_free(ggml_metal_cv_t cv) {
    delete cv;
}
void ggml_metal_cv_set_int16(ggml_metal_cv_t cv, int16_t value, int32_t idx) {
    cv->values[idx] = value;
}
void ggml_metal_cv_set_int32(ggml_metal_cv_t cv, int32_t value, int32_t idx) {
    cv->values[idx] = value;
}
void ggml_metal_cv_set_bool(ggml_metal_cv_t cv, bool value, int32_t idx) {
    cv->values[idx] = value;
}

ggml_metal_pipeline_t ggml_metal_pipeline_init(void) {
    return new ggml_metal_pipeline{};
}
void ggml_metal_pipeline_free(ggml_metal_pipeline_t pipeline) {
    delete pipeline->kernel;
    delete pipeline;
}
// KVTUNER_METAL_FEW_THREADS names a kernel whose registers leave room for one simdgroup alone
static int most_threads(const MetalKernel & kernel) {
    const char * few = getenv("KVTUNER_METAL_FEW_THREADS");
    return few && kernel.name == few ? 32 : 1024;
}
int ggml_metal_pipeline_max_theads_per_threadgroup(ggml_metal_pipeline_with_params pipeline) {
    return most_threads(*pipeline.pipeline->kernel);
}

ggml_metal_library_t ggml_metal_library_init(ggml_metal_device_t dev) {
    return new ggml_metal_library{ dev, ggml_metal_pipelines_init(), "" };
}
// as a compiler would that refuses texts with the words in KVTUNER_METAL_REFUSE
ggml_metal_library_t ggml_metal_library_init_from_source(ggml_metal_device_t dev, const char * source, bool) {
    const char * refused = getenv("KVTUNER_METAL_REFUSE");
    if (refused && strstr(source, refused)) {
        return nullptr;
    }
    return new ggml_metal_library{ dev, ggml_metal_pipelines_init(), metal_text(source) };
}
void ggml_metal_library_free(ggml_metal_library_t lib) {
    ggml_metal_pipelines_free(lib->pipelines);
    delete lib;
}
ggml_metal_device_t ggml_metal_library_get_device(ggml_metal_library_t lib) {
    return lib->device;
}
ggml_metal_pipeline_with_params ggml_metal_library_get_pipeline(ggml_metal_library_t lib, const char * name) {
    const std::lock_guard<std::recursive_mutex> locked(lib->lock);
    ggml_metal_pipeline_with_params result{};
    result.pipeline = ggml_metal_pipelines_get(lib->pipelines, name);
    return result;
}
ggml_metal_pipeline_with_params ggml_metal_library_compile_pipeline(ggml_metal_library_t lib, const char * base,
                                                                    const char * name, ggml_metal_cv_t cv) {
    const std::lock_guard<std::recursive_mutex> locked(lib->lock);
    ggml_metal_pipeline_with_params result = ggml_metal_library_get_pipeline(lib, name);
    if (!result.pipeline) {
        if (getenv("KVTUNER_METAL_SHOW")) {
            fprintf(stderr, "pipeline %s\n", name);
        }
        const auto constants = cv ? cv->values : std::map<int, long>();
        result.pipeline = new ggml_metal_pipeline{ new MetalKernel{ lib->text, base, constants } };
        ggml_metal_pipelines_add(lib->pipelines, name, result.pipeline);
    }
    return result;
}

ggml_metal_encoder_t ggml_metal_encoder_init(ggml_metal_cmd_buf_t commands, bool) {
    return new ggml_metal_encoder{ (command_buffer *)commands, {} };
}
void ggml_metal_encoder_free(ggml_metal_encoder_t encoder) {
    delete encoder;
}
void ggml_metal_encoder_debug_group_push(ggml_metal_encoder_t, const char *) {
}
void ggml_metal_encoder_debug_group_pop(ggml_metal_encoder_t) {
}
void ggml_metal_encoder_set_pipeline(ggml_metal_encoder_t encoder, ggml_metal_pipeline_with_params pipeline) {
    encoder->next = {};
    encoder->next.kernel = pipeline.pipeline ? pipeline.pipeline->kernel : nullptr;
    encoder->next.bytes.resize(n_slots);
    encoder->next.buffers.resize(n_slots);
}
void ggml_metal_encoder_set_bytes(ggml_metal_encoder_t encoder, void * data, size_t size, int idx) {
    encoder->next.bytes[idx].assign((char *)data, (char *)data + size);
    encoder->next.buffers[idx] = nullptr;
}
void ggml_metal_encoder_set_buffer(ggml_metal_encoder_t encoder, ggml_metal_buffer_id buffer, int idx) {
    encoder->next.buffers[idx] = (char *)buffer.metal + buffer.offs;
}
void ggml_metal_encoder_set_threadgroup_memory_size(ggml_metal_encoder_t encoder, size_t size, int idx) {
    GGML_ASSERT(size % 16 == 0 && size <= 32768);
    if (size == 0) {
        return;  // the kernel takes none
    }
    auto & sizes = encoder->next.threadgroup_bytes;
    sizes.resize(std::max(sizes.size(), (size_t)idx + 1));
    sizes[idx] = size;
}
void ggml_metal_encoder_dispatch_threadgroups(ggml_metal_encoder_t encoder, int tg0, int tg1, int tg2, int tptg0,
                                              int tptg1, int tptg2) {
    GGML_ASSERT(encoder->next.kernel && "a dispatch without a pipeline");
    GGML_ASSERT(tptg0 * tptg1 * tptg2 <= most_threads(*encoder->next.kernel));
    encoder->next.grid = { (unsigned)tg0, (unsigned)tg1, (unsigned)tg2 };
    encoder->next.threads = { (unsigned)tptg0, (unsigned)tptg1, (unsigned)tptg2 };
    encoder->to->add(encoder->next);
}
void ggml_metal_encoder_memory_barrier(ggml_metal_encoder_t encoder) {
    encoder->to->is_at_barrier = true;
}
void ggml_metal_encoder_end_encoding(ggml_metal_encoder_t) {
}
