// The devices behind one that splits every tensor among several; upstream keeps them to itself.
#pragma once

#include "ggml-backend.h"

#include <cstddef>

GGML_API size_t ggml_backend_meta_dev_n_devs(ggml_backend_dev_t meta_dev);
GGML_API ggml_backend_dev_t ggml_backend_meta_dev_simple_dev(ggml_backend_dev_t meta_dev, size_t index);
