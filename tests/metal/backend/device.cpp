// Stands in for upstream's ggml-metal-device.m without Apple's frameworks: the device, and what it can do.
#include "ggml-metal-device.h"

#include "ggml-impl.h"
#include "ggml-metal-common.h"
#include "ggml-metal-fusion.h"
#include "ggml-metal-impl.h"
#include "ggml-metal-ops.h"
#include "kvtuner-metal.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static constexpr size_t device_memory = size_t(8) << 30;

struct ggml_metal_rsets {};
struct ggml_metal_event {};
struct ggml_metal_device {
    ggml_metal_device_props props;
    ggml_metal_library_t library;
    ggml_metal_fusion_info * fusions;
};

ggml_metal_rsets_t ggml_metal_rsets_init(ggml_metal_device_t) {
    return new ggml_metal_rsets;
}
void ggml_metal_rsets_free(ggml_metal_rsets_t rsets) {
    delete rsets;
}
const char * ggml_metal_device_id_token(ggml_metal_device_id) {
    return "emulator";
}

// KVTUNER_METAL_LACKS has the words of what it cannot
static bool has(const char * what) {
    const char * lacks = getenv("KVTUNER_METAL_LACKS");
    return !lacks || !strstr(lacks, what);
}

ggml_metal_device_t ggml_metal_device_init(int device, int) {
    ggml_metal_device_t dev = new ggml_metal_device{};
    ggml_metal_device_props & props = dev->props;
    props.device = props.device_virt = device;
    snprintf(props.name, sizeof props.name, "MTL%d", device);
    snprintf(props.desc, sizeof props.desc, "Metal, emulated");
    props.max_buffer_size = props.max_working_set_size = device_memory;
    props.max_theadgroup_memory_size = 32768;
    props.has_simdgroup_reduction = props.has_unified_memory = true;
    props.has_simdgroup_mm = has("simdgroup_mm");
    props.has_bfloat = has("bfloat");
    props.use_shared_buffers = true;
    props.gpu_family = 9;
    props.op_offload_min_batch_size = 32;
    dev->library = ggml_metal_library_init(dev);
    dev->fusions = ggml_metal_fusion_info_init(!getenv("GGML_METAL_FUSION_DISABLE"), 0);
    return dev;
}
void ggml_metal_device_free(ggml_metal_device_t dev) {
    ggml_metal_library_free(dev->library);
    ggml_metal_fusion_info_free(dev->fusions);
    delete dev;
}
void * ggml_metal_device_get_obj(ggml_metal_device_t dev) {
    return dev;
}
void * ggml_metal_device_get_queue(ggml_metal_device_t dev) {
    return dev;
}
ggml_metal_library_t ggml_metal_device_get_library(ggml_metal_device_t dev) {
    return dev->library;
}
void ggml_metal_device_rsets_add(ggml_metal_device_t, ggml_metal_rset_t) {
}
void ggml_metal_device_rsets_rm(ggml_metal_device_t, ggml_metal_rset_t) {
}
void ggml_metal_device_rsets_keep_alive(ggml_metal_device_t) {
}
void ggml_metal_event_encode_signal(ggml_metal_event_t, ggml_metal_cmd_buf_t) {
}
void ggml_metal_event_encode_wait(ggml_metal_event_t, ggml_metal_cmd_buf_t) {
}
ggml_metal_event_t ggml_metal_device_event_init(ggml_metal_device_t) {
    return new ggml_metal_event;
}
void ggml_metal_device_event_free(ggml_metal_device_t, ggml_metal_event_t ev) {
    delete ev;
}
void ggml_metal_device_event_synchronize(ggml_metal_device_t, ggml_metal_event_t) {
}
void ggml_metal_device_get_memory(ggml_metal_device_t, size_t * free, size_t * total) {
    *free = *total = device_memory;
}
const ggml_metal_device_props * ggml_metal_device_get_props(ggml_metal_device_t dev) {
    return &dev->props;
}
ggml_metal_fusion_info * ggml_metal_device_get_fusion_info(ggml_metal_device_t dev) {
    return dev->fusions;
}
#include "supports_op.inc"  // cut out of ggml-metal-device.m
