#include "kvtuner-metal-library.h"

#include "ggml-backend-impl.h"

#include <mutex>
#include <tuple>

namespace {

struct library_key {
    ggml_metal_device_t device;
    std::string file;
    kvtuner_metal_defines defines;

    bool operator<(const library_key & other) const {
        return std::tie(device, file, defines) < std::tie(other.device, other.file, other.defines);
    }
};

// Null where it does not compile there. Kept until the program ends, as devices are. Nodes ask for it each time that
// they run, so that texts are made once.
ggml_metal_library_t library_of(const library_key & key) {
    static std::mutex lock;
    static auto & made = *new std::map<library_key, ggml_metal_library_t>();
    const std::lock_guard<std::mutex> locked(lock);
    const auto found = made.find(key);
    if (found != made.end()) {
        return found->second;
    }
    const std::string source = kvtuner_metal_source(key.file, key.defines);
    return made[key] = ggml_metal_library_init_from_source(key.device, source.c_str(), /*verbose =*/true);
}

}  // namespace

ggml_metal_pipeline_with_params kvtuner_metal_pipeline(ggml_metal_device_t device, const std::string & file,
                                                       const std::string & kernel,
                                                       const kvtuner_metal_defines & defines, ggml_metal_cv_t constants,
                                                       const std::string & name) {
    library_key key = { device, file, defines };
    if (ggml_metal_device_get_props(device)->has_bfloat) {
        key.defines["GGML_METAL_HAS_BF16"] = "1";
    }
    ggml_metal_library_t library = library_of(key);
    if (!library) {
        return {};
    }
    const std::string & known_as = name.empty() ? kernel : name;
    const auto known = ggml_metal_library_get_pipeline(library, known_as.c_str());
    return known.pipeline ? known
                          : ggml_metal_library_compile_pipeline(library, kernel.c_str(), known_as.c_str(), constants);
}

ggml_metal_buffer_id kvtuner_metal_buffer(const ggml_tensor * tensor) {
    const ggml_tensor * storage = tensor->view_src ? tensor->view_src : tensor;
    return ggml_metal_buffer_get_id((ggml_metal_buffer_t)storage->buffer->context, tensor);
}
