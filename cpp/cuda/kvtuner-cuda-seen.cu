// What queries see of tokens, found once for all layers that have the same masks.
#include "kvtuner-cuda-prefill-sizes.cuh"

#include "ggml-cuda/common.cuh"

namespace kvtuner::cuda {

namespace {

constexpr int WARPS = 4;
constexpr uint32_t HIDDEN = 0xfc00, SIZE_BITS = 0x7fff;  // of halves: -infinity, and all bits but the sign

// a mark by each warp
__global__ void __launch_bounds__(WARPS * LANES) mark_tokens(const seen_args a) {
    const int lane = threadIdx.x % LANES, i = blockIdx.x * WARPS + threadIdx.x / LANES;
    const int first_query = blockIdx.y * SEEN_QUERIES, stream = blockIdx.z;
    ggml_cuda_pdl_sync();
    if (i >= a.to.n) {
        return;
    }
    const bool is_exact = i < a.to.n_exact;
    const token_source & from = is_exact ? a.exact : a.cache;
    const int token = (is_exact ? i : i - a.to.n_exact) * SEEN_TOKENS + lane;
    const bool is_there = token < from.n_tokens && (!is_exact || a.exact_rows[token] >= 0);
    const uint16_t * mask = (const uint16_t *)from.mask + stream * from.mask_stream + token;
    const int n = min(SEEN_QUERIES, a.n_query - first_query);
    bool is_any_seen = false, is_any_changed = !is_there;
#pragma unroll 4
    for (int k = 0; k < n; ++k) {
        const uint32_t x = is_there ? mask[(first_query + k) * from.mask_query] : HIDDEN;
        is_any_seen |= x != HIDDEN;
        is_any_changed |= (x & SIZE_BITS) != 0;
    }
    const bool is_seen = __any_sync(0xffffffff, is_any_seen), is_changed = __any_sync(0xffffffff, is_any_changed);
    if (lane == 0) {
        a.to.marks[((int64_t)stream * a.to.n_rows + blockIdx.y) * a.to.n + i] = !is_seen     ? seen::NONE
                                                                                : is_changed ? seen::SOME
                                                                                             : seen::ALL;
    }
}

}  // namespace

void mark_seen(const seen_args & args, cudaStream_t stream) {
    const ggml_cuda_kernel_launch_params params(dim3((args.to.n + WARPS - 1) / WARPS, args.to.n_rows, args.to.n_stream),
                                                dim3(WARPS * LANES), (size_t)0, stream);
    ggml_cuda_kernel_launch(mark_tokens, params, args);
}

}  // namespace kvtuner::cuda
