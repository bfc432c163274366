#include "kvtuner-vectors.h"

#include "ggml.h"
#include "kvtuner-strict-json.h"

#include <base64.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

static constexpr uint32_t MIN_SPAN = 16, MAX_SPAN = 1u << 16;

static const char * name_of(kvtuner_vector_kind kind) {
    return kind == kvtuner_vector_kind::CENTER ? "center" : "scale";
}

std::string kvtuner_vector_name(size_t il, kvtuner_vector_kind kind) {
    return "layer " + std::to_string(il) + ": the K " + name_of(kind) + " ";
}

static bool is_finite(float value) {
    return std::isfinite(value);
}

// a vector of zeros is none
static std::vector<float> unless_zero(std::vector<float> values) {
    const bool is_zero = std::all_of(values.begin(), values.end(), [](float value) { return value == 0.0f; });
    return is_zero ? std::vector<float>() : values;
}

static bool is_code(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '/';
}

// whole groups of four, at most two of the last padded
static bool is_base64(const std::string & text) {
    const size_t end = text.find_last_not_of('=') + 1;
    return text.size() % 4 == 0 && text.size() - end <= 2 && std::all_of(text.begin(), text.begin() + end, is_code);
}

// the vector of layer il, or none for one of zeros
static std::vector<float> checked_vector(std::vector<float> values, size_t il, kvtuner_vector_kind kind) {
    const auto reject = [&](const char * what) {
        throw std::runtime_error(kvtuner_vector_name(il, kind) + "holds a value that is " + what +
                                 ": tune the model again");
    };
    if (!std::all_of(values.begin(), values.end(), is_finite)) {
        reject("no number");
    }
    values = unless_zero(std::move(values));
    const bool is_positive = std::all_of(values.begin(), values.end(), [](float value) { return value > 0; });
    if (kind == kvtuner_vector_kind::SCALE && !is_positive) {
        reject("not above 0");
    }
    return values;
}

std::vector<float> kvtuner_vector_from_base64(const std::string & text, size_t il, kvtuner_vector_kind kind) {
    const std::string where = kvtuner_vector_name(il, kind);
    if (!is_base64(text)) {
        throw std::runtime_error(where + "is no base64: tune the model again");
    }
    const std::string raw = base64::decode(text);
    if (raw.size() % sizeof(ggml_fp16_t) != 0) {
        throw std::runtime_error(where + "has " + std::to_string(raw.size()) +
                                 " bytes, which are no float16 values: tune the model again");
    }
    std::vector<float> values(raw.size() / sizeof(ggml_fp16_t));
    for (size_t i = 0; i < values.size(); ++i) {
        ggml_fp16_t half;
        memcpy(&half, raw.data() + i * sizeof(half), sizeof(half));
        values[i] = ggml_fp16_to_fp32(half);
    }
    return checked_vector(std::move(values), il, kind);
}

static float as_float16(float value) {
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(value));
}

std::vector<std::vector<float>> kvtuner_vectors_from_gguf(const gguf_context * metadata, const std::string & key,
                                                          const std::vector<uint32_t> & sizes,
                                                          kvtuner_vector_kind kind) {
    const int64_t id = gguf_find_key(metadata, key.c_str());
    if (id < 0) {
        return {};
    }
    if (gguf_get_kv_type(metadata, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(metadata, id) != GGUF_TYPE_FLOAT32) {
        throw std::runtime_error(key + " is no list of float32 values: annotate the model again");
    }
    const uint64_t wanted = std::accumulate(sizes.begin(), sizes.end(), uint64_t(0));
    const uint64_t found = gguf_get_arr_n(metadata, id);
    if (found != wanted) {
        throw std::runtime_error("the K " + std::string(name_of(kind)) + "s have " + std::to_string(found) +
                                 " values, the model's layers " + std::to_string(wanted) +
                                 ": annotate the model again");
    }
    const float * values = (const float *)gguf_get_arr_data(metadata, id);
    std::vector<std::vector<float>> vectors;
    for (size_t il = 0; il < sizes.size(); ++il) {
        std::vector<float> vector(sizes[il]);
        std::transform(values, values + sizes[il], vector.begin(), as_float16);
        vectors.push_back(checked_vector(std::move(vector), il, kind));
        values += sizes[il];
    }
    return vectors;
}

static bool is_span(uint32_t value) {
    return value >= MIN_SPAN && value <= MAX_SPAN && (value & (value - 1)) == 0;
}

uint32_t kvtuner_center_span_of(const nlohmann::json & value, const std::vector<std::vector<float>> & centers) {
    if (value.is_null()) {
        return 0;
    }
    if (!kvtuner_is_count(value) || !is_span(value.get<uint32_t>())) {
        throw std::runtime_error("the center span is " + kvtuner_shown(value) + ": give a power of two from " +
                                 std::to_string(MIN_SPAN) + " to " + std::to_string(MAX_SPAN));
    }
    if (std::all_of(centers.begin(), centers.end(), [](const std::vector<float> & v) { return v.empty(); })) {
        throw std::runtime_error("center_span is given, and no layer has a center: leave it out");
    }
    return value.get<uint32_t>();
}

void kvtuner_check_vectors(const std::vector<std::vector<float>> & vectors, const std::vector<uint64_t> & sizes,
                           kvtuner_vector_kind kind) {
    for (size_t il = 0; il < vectors.size(); ++il) {
        if (!vectors[il].empty() && vectors[il].size() != sizes[il]) {
            throw std::runtime_error(kvtuner_vector_name(il, kind) + "has " + std::to_string(vectors[il].size()) +
                                     " values, the layer " + std::to_string(sizes[il]) +
                                     ": use a plan that was tuned for this model");
        }
    }
}
