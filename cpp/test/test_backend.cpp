// The warning about layers that a back end attends slowly, and what it reads beside a cache, on devices made up for it.

#include "kvtuner-attention-device.h"
#include "kvtuner-backend.h"
#include "kvtuner-mark.h"

#include "ggml-backend-impl.h"

#include <cstdio>
#include <cstring>
#include <string>

static const char * compiled;  // FA_QUANTS of the made-up device; null: a back end without that feature

static ggml_backend_feature * features(ggml_backend_reg_t) {
    static ggml_backend_feature list[3];
    list[0] = { "ARCHS", "900" };
    list[1] = { compiled ? "FA_QUANTS" : nullptr, compiled };
    list[2] = { nullptr, nullptr };
    return list;
}

static bool has_kernels;  // of ours, for all types but iq4_nl

static bool is_fast(ggml_backend_dev_t, const ggml_tensor * node) {
    return kvtuner_is_marked(node) && node->src[1]->type != GGML_TYPE_IQ4_NL;
}

static const char * kernels_problem(ggml_backend_dev_t, const ggml_tensor * node) {
    const bool has_beside = kvtuner_has_exact(node) && kvtuner_has_centers(node) && node->src[4];
    return has_beside ? "no kernel beside" : node->src[2]->type == GGML_TYPE_Q4_0 ? "no kernel" : nullptr;
}

static void * proc_address(ggml_backend_reg_t, const char * name) {
    if (has_kernels && strcmp(name, KVTUNER_ATTENTION_IS_FAST) == 0) {
        return (void *)is_fast;
    }
    if (has_kernels && strcmp(name, KVTUNER_KERNELS_PROBLEM) == 0) {
        return (void *)kernels_problem;
    }
    return strcmp(name, "ggml_backend_get_features") == 0 ? (void *)features : nullptr;
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

// equal types only, and none of iq4_nl
static bool supports(ggml_backend_dev_t, const ggml_tensor * op) {
    const ggml_type type_k = op->src[1]->type;
    const ggml_type type_v = op->src[2]->type;
    return op->op == GGML_OP_FLASH_ATTN_EXT && type_k != GGML_TYPE_IQ4_NL && (compiled || type_k == type_v);
}

static const char * device_name(ggml_backend_dev_t) {
    return "GPU0";
}

static int failures = 0;

static void expect(const char * what, const std::string & found, const std::string & wanted) {
    if (found != wanted) {
        printf("%s:\n  found  '%s'\n  wanted '%s'\n", what, found.c_str(), wanted.c_str());
        ++failures;
    }
}

static kvtuner_attention_layer layer(uint32_t il, ggml_type type_k, ggml_type type_v) {
    return { il, 64, 64, 9, 3, type_k, type_v };
}

int main() {
    ggml_backend_reg reg = {};
    reg.iface.get_proc_address = proc_address;
    ggml_backend_device device = {};
    device.iface.get_name = device_name;
    device.iface.supports_op = supports;
    device.reg = &reg;

    const std::vector<kvtuner_attention_layer> layers = {
        layer(0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0),   layer(1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0),
        layer(2, GGML_TYPE_F16, GGML_TYPE_F16),     layer(3, GGML_TYPE_Q4_0, GGML_TYPE_Q4_0),
        layer(5, GGML_TYPE_IQ4_NL, GGML_TYPE_Q8_0),
    };

    compiled = "q4_0-q4_0,q8_0-q8_0";
    expect("a CUDA build with few pairs", kvtuner_slow_layers(&device, layers),
           "GPU0 is slow with this plan: it has no attention kernel for iq4_nl/q8_0 in layers 5, which the CPU attends "
           "instead: use other types there; and converts K and V to f16 on every call for q8_0/q4_0 in layers 0-1: "
           "build with -D \"GGML_CUDA_FA_QUANTS=q4_0-q4_0;q8_0-q8_0;q8_0-q4_0\"");

    compiled = "all";
    expect("a CUDA build with all pairs", kvtuner_slow_layers(&device, { layers[0], layers[2], layers[3] }), "");

    expect("a CUDA build with all pairs, and types of ours",
           kvtuner_slow_layers(&device, { layers[0], layer(7, GGML_TYPE_Q3_NL, GGML_TYPE_Q2_NL) }),
           "GPU0 is slow with this plan: it converts K and V to f16 on every call for q3_nl/q2_nl in layers 7: use "
           "other types there");

    compiled = nullptr;
    expect("a back end of equal types", kvtuner_slow_layers(&device, layers),
           "GPU0 is slow with this plan: it has no attention kernel for iq4_nl/q8_0 in layers 5; q8_0/q4_0 in layers "
           "0-1, which the CPU attends instead: use other types there");
    expect("a plan that it runs", kvtuner_slow_layers(&device, { layers[2], layers[3] }), "");

    compiled = "q4_0-q4_0,q8_0-q8_0";
    device.iface.get_description = device_name;
    ggml_backend_dev_t both[] = { &device, &device };
    const std::string found = kvtuner_slow_layers(ggml_backend_meta_device(both, 2, nullptr, nullptr), { layers[0] });
    expect("devices that split every tensor", found,
           "GPU0+GPU0 is slow with this plan: it converts K and V to f16 on every call for q8_0/q4_0 in layers "
           "0: "
           "build with -D \"GGML_CUDA_FA_QUANTS=q4_0-q4_0;q8_0-q8_0;q8_0-q4_0\"");

    device.iface.get_type = device_type;
    expect("beside a cache, without kernels of ours", kvtuner_reads_beside(&device) ? "read" : "not", "not");
    expect("a back end that compiles nothing later", kvtuner_kernels_problem(&device, layers[0]), "");
    has_kernels = true;
    expect("kernels that a compiler refuses", kvtuner_kernels_problem(&device, layers[0]), "no kernel");
    expect("kernels that it takes", kvtuner_kernels_problem(&device, layers[4]), "");
    kvtuner_attention_layer beside = layers[4];
    beside.type_exact = GGML_TYPE_Q8_0;
    beside.has_centers = beside.has_sinks = true;
    expect("kernels of what lies beside", kvtuner_kernels_problem(&device, beside), "no kernel beside");
    expect("beside a cache", kvtuner_reads_beside(&device) ? "read" : "not", "read");
    expect("kernels of ours", kvtuner_slow_layers(&device, { layers[0], layer(7, GGML_TYPE_Q3_NL, GGML_TYPE_Q2_NL) }),
           "");
    expect("kernels of ours, not for all types", kvtuner_slow_layers(&device, layers),
           "GPU0 is slow with this plan: it has no attention kernel for iq4_nl/q8_0 in layers 5, which the CPU attends "
           "instead: use other types there");

    printf("%d failures\n", failures);
    return failures != 0;
}
