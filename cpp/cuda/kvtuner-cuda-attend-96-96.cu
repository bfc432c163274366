#include "kvtuner-cuda-launch-sizes.cuh"

template void kvtuner::cuda::launch_attention<96, 96, 4>(const attention_args &, const attention_launch &);
