// What a source file instantiates.
#pragma once

#include "kvtuner-cuda-merge.cuh"
#include "kvtuner-cuda-prefill.cuh"

namespace kvtuner::cuda {

template <int DK, int DV>
void launch_prefill(const prefill_args & args, const prefill_launch & l) {
    CUDA_SET_SHARED_MEMORY_LIMIT((attend_many<DK, DV>), ggml_cuda_info().devices[ggml_cuda_get_device()].smpbo);
    const ggml_cuda_kernel_launch_params params(dim3(l.n_row_tiles, args.n_head_kv, args.merge.n_parts * l.n_stream),
                                                dim3(PREFILL_THREADS), l.shared_bytes, l.stream);
    ggml_cuda_kernel_launch(attend_many<DK, DV>, params, args);
    launch_merge<DV>(args.merge, l.n_stream, l.stream);
}

}  // namespace kvtuner::cuda
