// Whether kernels of ours start while the one before still runs.
#pragma once

#include "ggml-cuda/common.cuh"
#include "kvtuner-cuda-runtime.cuh"

namespace kvtuner::cuda {

#if defined(KVTUNER_CUDA_ON_CPU) || (defined(GGML_CUDA_USE_PDL) && KVTUNER_NVIDIA_ARCH >= 900)
constexpr bool STARTS_EARLY = true;
#else
constexpr bool STARTS_EARLY = false;
#endif

}  // namespace kvtuner::cuda
