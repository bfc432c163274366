#include "kvtuner-cuda-launch-sizes.cuh"

template void kvtuner::cuda::launch_attention<512, 512, 1>(const attention_args &, const attention_launch &);
