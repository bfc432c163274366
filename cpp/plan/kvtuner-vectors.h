// The vectors of a plan, one per layer, in its two forms: base64 in JSON, one flat array in GGUF metadata.
#pragma once

#include "gguf.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

enum class kvtuner_vector_kind {
    CENTER,
    SCALE,  // values above 0
};

// One layer's vector from the base64 of its float16 values, little-endian; a vector of zeros is left empty. Throws
// std::runtime_error naming the layer.
std::vector<float> kvtuner_vector_from_base64(const std::string & text, size_t il, kvtuner_vector_kind kind);

// The vectors of all layers, whose sizes are given, from the float32 array `key`; none at all where the key is absent.
// They are rounded to float16, as vectors of a plan are. A vector of zeros is left empty. Throws std::runtime_error
// where the array does not fit or holds what cannot be a value.
std::vector<std::vector<float>> kvtuner_vectors_from_gguf(const gguf_context * metadata, const std::string & key,
                                                          const std::vector<uint32_t> & sizes,
                                                          kvtuner_vector_kind kind);

// The span of these centers; 0 for null. Throws std::runtime_error where it is none, or no layer has a center.
uint32_t kvtuner_center_span_of(const nlohmann::json & value, const std::vector<std::vector<float>> & centers);

// "layer 3: the K scale ", with which messages begin.
std::string kvtuner_vector_name(size_t il, kvtuner_vector_kind kind);

// Throws std::runtime_error where a vector does not have the size of its layer.
void kvtuner_check_vectors(const std::vector<std::vector<float>> & vectors, const std::vector<uint64_t> & sizes,
                           kvtuner_vector_kind kind);
