// CUDA's types, or those that ROCm and MUSA, or tests on the CPU, have in their place.
#pragma once

#if defined(KVTUNER_CUDA_ON_CPU)
#    include "cuda_on_cpu.h"
#elif defined(GGML_USE_HIP)
#    include "ggml-cuda/vendors/hip.h"
#elif defined(GGML_USE_MUSA)
#    include "ggml-cuda/vendors/musa.h"
#else
#    include <cuda_fp16.h>
#    include <cuda_runtime.h>
#endif

// the compute capability that code is compiled for; 0 on the host and where there are no instructions of NVIDIA's
#if defined(__CUDA_ARCH__) && !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
#    define KVTUNER_NVIDIA_ARCH __CUDA_ARCH__
#else
#    define KVTUNER_NVIDIA_ARCH 0
#endif
