// What a source file instantiates.
#pragma once

#include "kvtuner-cuda-decode.cuh"
#include "kvtuner-cuda-launch.cuh"
#include "kvtuner-cuda-merge.cuh"
#include "kvtuner-cuda-short.cuh"
#include "kvtuner-cuda-wide.cuh"

namespace kvtuner::cuda {

// KERNEL: so that each has a place of its own in the code, where its limit is kept as set
template <void (*KERNEL)(attention_args)>
void launch_kernel(const attention_args & args, const attention_launch & l) {
    CUDA_SET_SHARED_MEMORY_LIMIT(KERNEL, ggml_cuda_info().devices[ggml_cuda_get_device()].smpbo);
    const ggml_cuda_kernel_launch_params params(dim3(l.n_parts, l.n_column_groups, l.n_stream), dim3(l.n_threads),
                                                l.shared_bytes, l.stream);
    ggml_cuda_kernel_launch(KERNEL, params, args);
}

template <int DK, int DV, int TILES>
void launch_tiles(const attention_args & args, const attention_launch & l) {
    if constexpr (team_warps(DV) > 1) {
        return args.units == TEAM_UNITS ? launch_kernel<attend_wide<DK, DV, TILES, TEAM_UNITS>>(args, l)
                                        : launch_kernel<attend_wide<DK, DV, TILES, 1>>(args, l);
    } else {
        if (l.is_short) {
            return launch_kernel<attend_short<DK, DV, TILES>>(args, l);
        }
        if constexpr (most_units(DK, DV, TILES) >= 2) {
            if (args.units == 2) {
                return launch_kernel<attend<DK, DV, TILES, 2>>(args, l);
            }
        }
        launch_kernel<attend<DK, DV, TILES, 1>>(args, l);
    }
}

template <int DK, int DV, int MOST_TILES>
void launch_attention(const attention_args & args, const attention_launch & l) {
    if (l.tiles == 1) {
        launch_tiles<DK, DV, 1>(args, l);
    }
    if constexpr (MOST_TILES >= 2) {
        if (l.tiles == 2) {
            launch_tiles<DK, DV, 2>(args, l);
        }
    }
    if constexpr (MOST_TILES >= 4) {
        if (l.tiles == 4) {
            launch_tiles<DK, DV, 4>(args, l);
        }
    }
    if (args.merge.n_parts > 1) {
        launch_merge<DV>(args.merge, l.n_stream, l.stream);
    }
}

}  // namespace kvtuner::cuda
