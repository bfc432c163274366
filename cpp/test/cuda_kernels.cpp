#include "cuda_kernels.h"

#include "ggml-cuda/common.cuh"

#include "kvtuner-cuda-rows-kernels.cuh"
#include "kvtuner-cuda-write-rows.cuh"

#include <cmath>
#include <cstdlib>

namespace cuda_kernels {

namespace {

using namespace kvtuner::cuda;
using kvtuner::side;

// calls f with a block of the type
template <typename F>
void with_block(ggml_type type, F f) {
    type == GGML_TYPE_Q2_NL ? f(block_q2_nl()) : f(block_q3_nl());
}

// and with the side as a template argument
template <typename F>
void with_block_and_side(const written_rows & to, F f) {
    with_block(to.type, [&](auto block) {
        to.of_values ? f(block, std::integral_constant<side, side::V>())
                     : f(block, std::integral_constant<side, side::K>());
    });
}

int blocks_of_grid(int64_t n_threads) {
    return (int)((n_threads + THREADS - 1) / THREADS);
}

layout layout_of(ggml_type type, int64_t n) {
    const int64_t size = (int64_t)ggml_type_size(type), row = (int64_t)ggml_row_size(type, n);
    return { { n, 1, 1 }, { size, row, row, row }, (int)ggml_blck_size(type) };
}

copy_args args_of(const void * from, ggml_type from_type, void * to, ggml_type to_type, int64_t n) {
    return { (const char *)from, (char *)to, layout_of(from_type, n), layout_of(to_type, n), n };
}

template <typename FORMAT>
struct only {
    template <int N>
    static void store(const write_args &, const float (&x)[N / kvtuner::cuda::WARP], float * shared, int lane,
                      char * row, int at) {
        if constexpr (N % FORMAT::unit == 0) {
            FORMAT::template store<N>(x, shared, lane, row, at);
        }
    }

    // these cases store rows once
    template <int N>
    static void store_exact(const write_args &, const float (&)[N / kvtuner::cuda::WARP], int, char *, int) {
    }
};

template <typename FORMAT>
void run_write(write_args args, int64_t piece) {
    args.piece = (int)piece;
    args.pieces_per_row = args.row_length / args.piece;
    args.n_pieces *= args.pieces_per_row;
    const int n_blocks = (int)((args.n_pieces + WARPS_PER_BLOCK - 1) / WARPS_PER_BLOCK);
    cuda_on_cpu::run({ n_blocks, { kvtuner::cuda::WARP, warps_of_write(n_blocks) } },
                     [&] { write_rows<only<FORMAT>>({ { args }, 1 }); });
}

}  // namespace

bytes set_rows(const written_rows & to, const values & rows) {
    const int64_t row_size = (int64_t)ggml_row_size(to.type, to.row_length), n_rows = (int64_t)to.cells.size();
    bytes cache(to.n_cells * row_size);
    set_rows_args args = {};
    args.rows = (const char *)rows.data();
    args.indices = (const char *)to.cells.data();
    args.to = (char *)cache.data();
    const int64_t float_row = to.row_length * (int64_t)sizeof(float);
    for (int i = 0; i < 4; ++i) {
        args.ne[i] = i == 0 ? to.row_length : i == 1 ? n_rows : 1;
        args.nb[i] = i == 0 ? (int64_t)sizeof(float) : float_row;
        args.nb_to[i] = row_size;
    }
    args.n_index[0] = args.n_index[1] = 1;
    args.nb_index[0] = sizeof(int64_t);
    with_block_and_side(to, [&](auto block, auto side_of) {
        cuda_on_cpu::run({ blocks_of_grid((int64_t)rows.size() / EACH), THREADS },
                         [&] { kvtuner::cuda::set_rows<decltype(block), side_of(), int64_t>(args); });
    });
    return cache;
}

bytes copy_to_blocks(ggml_type type, const values & x) {
    const int64_t n = (int64_t)x.size();
    bytes blocks(ggml_row_size(type, n));
    const copy_args args = args_of(x.data(), GGML_TYPE_F32, blocks.data(), type, n);
    with_block(type, [&](auto block) {
        cuda_on_cpu::run({ blocks_of_grid(n / EACH), THREADS },
                         [&] { kvtuner::cuda::copy_to_blocks<decltype(block)>(args); });
    });
    return blocks;
}

values copy_from_blocks(ggml_type type, const bytes & blocks, int64_t n) {
    values x(n);
    const copy_args args = args_of(blocks.data(), type, x.data(), GGML_TYPE_F32, n);
    with_block(type, [&](auto block) {
        cuda_on_cpu::run({ blocks_of_grid(n / 2), THREADS },
                         [&] { kvtuner::cuda::copy_from_blocks<decltype(block)>(args); });
    });
    return x;
}

bytes write(const written_rows & to, const values & rows, int64_t rotation, const values & factors,
            const values & center) {
    bytes cache(to.n_cells * ggml_row_size(to.type, to.row_length));
    write_args args = {};
    args.rows = rows.data();
    args.stride = to.row_length;
    args.factors = factors.empty() ? nullptr : factors.data();
    args.center = center.empty() ? nullptr : center.data();
    args.indices = to.cells.data();
    args.cache = (char *)cache.data();
    args.cache_stride = (int64_t)ggml_row_size(to.type, to.row_length);
    args.row_length = (int)to.row_length;
    args.n_pieces = (int64_t)to.cells.size();
    args.is_rotated = rotation != 0;
    args.scale = rotation ? 1 / sqrtf((float)rotation) : 1;
    with_block_and_side(to, [&](auto block, auto side_of) {
        using format = low_bits<decltype(block), side_of()>;
        run_write<format>(args, rotation ? rotation : format::unit);
    });
    return cache;
}

}  // namespace cuda_kernels
