#include "kvtuner-cuda-prefill-launch.cuh"

template void kvtuner::cuda::launch_prefill<192, 128>(const prefill_args &, const prefill_launch &);
