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

template <int DV>
void launch_merge(const merge_args & args, const attention_launch & l) {
    const bool is_few = args.n_parts <= FEW_PARTS;
    const int n = args.n_columns(), n_warps = is_few ? MERGE_FEW_WARPS : MERGE_WARPS;
    const int n_blocks = is_few ? (n + MERGE_FEW_WARPS - 1) / MERGE_FEW_WARPS : n;
    const ggml_cuda_kernel_launch_params params(dim3(n_blocks, l.n_stream), dim3(n_warps * LANES), (size_t)0, l.stream);
    if (is_few) {
        ggml_cuda_kernel_launch(merge_few_parts<DV>, params, args);
    } else {
        ggml_cuda_kernel_launch(merge_parts<DV>, params, args);
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
        launch_merge<DV>(args.merge, l);
    }
}

}  // namespace kvtuner::cuda
