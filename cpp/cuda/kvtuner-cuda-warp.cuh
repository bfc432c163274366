// What a warp does at once: instructions of NVIDIA's, or what tests on the CPU have in their place.
#pragma once

#ifdef KVTUNER_CUDA_ON_CPU
#    include "cuda_instructions_on_cpu.h"
#else
#    include "kvtuner-cuda-instructions.cuh"
#endif
