#include "kvtuner-cuda-prefill-launch.cuh"

template void kvtuner::cuda::launch_prefill<64, 64>(const prefill_args &, const prefill_launch &);
