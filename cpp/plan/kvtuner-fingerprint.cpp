#include "kvtuner-plan.h"

#include <cinttypes>
#include <cstdio>

static uint64_t fnv1a_64(const std::string & text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (unsigned char byte : text) {
        hash = (hash ^ byte) * 0x100000001b3;
    }
    return hash;
}

static std::string hex(uint64_t number) {
    char text[17];
    snprintf(text, sizeof(text), "%016" PRIx64, number);
    return text;
}

// what a layer's entry in the fingerprint says of such a vector
static std::string digest(const char * name, const std::vector<std::vector<float>> & vectors, size_t il) {
    if (il >= vectors.size() || vectors[il].empty()) {
        return "";
    }
    const char * bytes = (const char *)vectors[il].data();
    return ";" + std::string(name) + "=" + hex(fnv1a_64({ bytes, vectors[il].size() * sizeof(float) }));
}

static std::string span_text(uint32_t span) {
    return span == 0 ? "" : ";center_span=" + std::to_string(span);
}

static std::string ends_text(const kvtuner_ends & ends) {
    return ends.n_positions() == 0 ? ""
                                   : ";ends=" + std::to_string(ends.first) + "+" + std::to_string(ends.last) + ":" +
                                             ggml_type_name(ends.type);
}

std::string kvtuner_plan_fingerprint(const kvtuner_plan & plan) {
    std::string text = "kvtuner.plan/1";
    for (size_t il = 0; il < plan.type_k.size(); ++il) {
        text += ";" + std::to_string(il) + ":" + ggml_type_name(plan.type_k[il]) + "/" +
                ggml_type_name(plan.type_v[il]) + digest("center_k", plan.center_k, il) +
                digest("scale_k", plan.scale_k, il);
    }
    return hex(fnv1a_64(text + span_text(plan.center_span) + ends_text(plan.ends)));
}
