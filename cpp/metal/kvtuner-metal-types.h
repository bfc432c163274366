// Cache types by what Metal calls them.
#pragma once

#include "ggml.h"

// what a row of such a type consists of; null for a type that no cache has
const char * kvtuner_metal_name(ggml_type type);
