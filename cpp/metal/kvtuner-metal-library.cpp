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

ggml_metal_cv_t constants_of(const kvtuner_metal_kernel & kernel) {
    ggml_metal_cv_t values = ggml_metal_cv_init();
    int index = kernel.first_constant;
    for (const auto & value : kernel.constants) {
        if (const bool * yes = std::get_if<bool>(&value)) {
            ggml_metal_cv_set_bool(values, *yes, index++);
        } else {
            ggml_metal_cv_set_int16(values, std::get<int16_t>(value), index++);
        }
    }
    return values;
}

// of the pipeline of a kernel with its constants
std::string full_name(const kvtuner_metal_kernel & kernel) {
    std::string name = kernel.name;
    for (const auto & value : kernel.constants) {
        name += "_" + std::visit([](auto number) { return std::to_string(number); }, value);
    }
    return name;
}

// null where the device's compiler refuses it, which the log tells
ggml_metal_pipeline_with_params pipeline_of(ggml_metal_device_t device, const kvtuner_metal_kernel & kernel) {
    library_key key = { device, kernel.file, kernel.defines };
    if (ggml_metal_device_get_props(device)->has_bfloat) {
        key.defines["GGML_METAL_HAS_BF16"] = "1";
    }
    ggml_metal_library_t library = library_of(key);
    if (!library) {
        return {};
    }
    const std::string name = full_name(kernel);
    const auto known = ggml_metal_library_get_pipeline(library, name.c_str());
    if (known.pipeline) {
        return known;
    }
    if (kernel.constants.empty()) {
        return ggml_metal_library_compile_pipeline(library, kernel.name.c_str(), name.c_str(), nullptr);
    }
    ggml_metal_cv_t constants = constants_of(kernel);
    const auto made = ggml_metal_library_compile_pipeline(library, kernel.name.c_str(), name.c_str(), constants);
    ggml_metal_cv_free(constants);
    return made;
}

std::string problem_of(ggml_metal_device_t device, const kvtuner_metal_kernel & kernel,
                       ggml_metal_pipeline_with_params pipeline) {
    const std::string name = ggml_metal_device_get_props(device)->name;
    if (!pipeline.pipeline) {
        return "the compiler of " + name + " refuses " + kernel.name;
    }
    const int most = ggml_metal_pipeline_max_theads_per_threadgroup(pipeline);
    return most >= kernel.threads ? ""
                                  : name + " allows " + std::to_string(most) + " threads in a threadgroup of " +
                                            kernel.name + ", not " + std::to_string(kernel.threads);
}

}  // namespace

std::string kvtuner_metal_problem(ggml_metal_device_t device, const kvtuner_metal_kernel & kernel) {
    return problem_of(device, kernel, pipeline_of(device, kernel));
}

bool kvtuner_metal_has_lanes(ggml_metal_device_t device) {
    return ggml_metal_device_get_props(device)->has_simdgroup_mm;
}

void kvtuner_metal_begin(ggml_metal_device_t device, ggml_metal_encoder_t encoder,
                         const kvtuner_metal_kernel & kernel) {
    const auto pipeline = pipeline_of(device, kernel);
    const std::string problem = problem_of(device, kernel, pipeline);
    if (!problem.empty()) {
        GGML_ABORT("%s", problem.c_str());
    }
    ggml_metal_encoder_set_pipeline(encoder, pipeline);
}

ggml_metal_buffer_id kvtuner_metal_buffer(const ggml_tensor * tensor) {
    const ggml_tensor * storage = tensor->view_src ? tensor->view_src : tensor;
    return ggml_metal_buffer_get_id((ggml_metal_buffer_t)storage->buffer->context, tensor);
}
