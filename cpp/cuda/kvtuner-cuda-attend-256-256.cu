#include "kvtuner-cuda-launch-sizes.cuh"

template void kvtuner::cuda::launch_attention<256, 256, 2>(const attention_args &, const attention_launch &);
