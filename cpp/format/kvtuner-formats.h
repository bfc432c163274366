// The types of kvtuner-formats.def as a list.
#pragma once

#include "ggml.h"

inline constexpr ggml_type KVTUNER_CACHE_TYPES[] = {
#define KVTUNER_NUMBER(TYPE, name) GGML_TYPE_##TYPE,
#define KVTUNER_BLOCK(TYPE, name, size) GGML_TYPE_##TYPE,
#include "kvtuner-formats.def"
};
