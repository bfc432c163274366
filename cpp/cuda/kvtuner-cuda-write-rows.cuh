// The kernel of the write in one launch: RoPE, scale, rotate, center, convert and store.
#pragma once

#include "kvtuner-cuda-early.cuh"
#include "kvtuner-cuda-quantize.cuh"
#include "kvtuner-cuda-rope.cuh"

#include <cstdint>

// a parameter of a kernel that is read in place, whatever indexes it
#ifdef __CUDACC__
#    define KVTUNER_GRID_CONSTANT __grid_constant__
#else
#    define KVTUNER_GRID_CONSTANT
#endif

namespace kvtuner::cuda {

constexpr int WARP = 32;
constexpr int WARPS_PER_BLOCK = 4;  // that write
constexpr int ALL_WARPS = WARPS_PER_BLOCK + 4;
// what those that write have of shared memory, and the steps that the others go through there
constexpr int ROOMS = WARPS_PER_BLOCK + (STARTS_EARLY ? 2 : 0);

// of a block of threads; of many blocks, none has warps that do not write
constexpr int warps_of_write(const int n_blocks) {
    return n_blocks <= 32 ? ALL_WARPS : WARPS_PER_BLOCK;
}

struct write_args {
    const float * rows;
    int64_t stride;           // values from a row to the next
    const float * factors;    // null: none
    const float * center;     // null: none, or those of a table
    const half * centers;     // of blocks of positions, or null
    const int32_t * blocks;   // of each row
    const int64_t * indices;  // of cells, or null: row i goes to cell i
    rope_args rope;           // of heads, each a piece
    char * cache;
    int64_t cache_stride;  // bytes
    int type;              // ggml_type
    bool is_of_values;
    const int64_t * exact_indices;
    char * exact;          // where rows are stored as exact ones, too; null: nowhere
    int64_t exact_stride;  // bytes
    int exact_type;        // f16 or q8_0
    int row_length;
    int piece;  // values of a row that a warp takes
    int pieces_per_row;
    int n_pieces;
    bool is_rotated;
    float scale;
};

constexpr int MOST_VALUES = 512;  // of a piece
constexpr int MOST_WRITES = 3;    // of keys, values, and queries that are only turned

// those that one launch does, side by side
struct write_set {
    write_args of[MOST_WRITES];
    int n;
};

// Walsh-Hadamard transform of N values, value i * 32 + lane in x[i]: the order of additions is upstream's (fwht.cu)
template <int N>
__device__ void transform(float (&x)[N / WARP], const int lane) {
#pragma unroll
    for (int h = 1; h < WARP; h *= 2) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            const float mine = x[i];
            const float other = __shfl_xor_sync(ALL_THREADS, mine, h, WARP);
            x[i] = (lane & h) == 0 ? mine + other : other - mine;
        }
    }
#pragma unroll
    for (int step = 1; step < N / WARP; step *= 2) {
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            if ((i & step) == 0) {
                const float low = x[i];
                const float high = x[i + step];
                x[i] = low + high;
                x[i + step] = low - high;
            }
        }
    }
}

// How a piece of N values is converted and stored: a format has a `store` like this one, and says in `unit` how many
// values it takes at least. Formats have one that is told the type.
template <typename BLOCK, side SIDE>
struct low_bits {
    static constexpr int unit = QK_NL;

    template <int N>
    static __device__ void store(const float (&x)[N / WARP], float * shared, const int lane, char * row, const int at) {
        constexpr int n_blocks = N / QK_NL;
#pragma unroll
        for (int i = 0; i < N / WARP; ++i) {
            shared[i * WARP + lane] = x[i];
        }
        __syncwarp();
#pragma unroll
        for (int first = 0; first < n_blocks; first += WARP / TOGETHER) {
            const int b = first + lane / TOGETHER;
            const bool is_stored = b < n_blocks;
            const float * from = shared + (is_stored ? b : first) * QK_NL + lane % TOGETHER;
            const float values[EACH] = { from[0], from[TOGETHER], from[2 * TOGETHER], from[3 * TOGETHER] };
            quantize_together<SIDE>(values, lane % TOGETHER, is_stored, (BLOCK *)row + at / QK_NL + b);
        }
    }
};

// shared memory of a warp
struct write_room {
    float values[MOST_VALUES];
    float2 turns[MOST_VALUES];  // cosine and sine for each value, each read and written by one lane alone
};

// What turns the values of a row. Loops of RoPE are not unrolled: instructions take longer to come than to run.
inline __device__ void find_turns(const rope_args & rope, const int64_t row, const int lane, float2 * turns) {
    const int32_t position = rope.n_turned > 0 ? rope.positions[row] : 0;
#pragma unroll 1
    for (int i = lane; i < rope.n_turned; i += WARP) {
        turns[i] = rope_turn(rope, position, rope_pair(rope, i).index);
    }
}

template <int N>
__device__ void turn(const rope_args & rope, float (&x)[N / WARP], const int lane, write_room & room) {
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        room.values[i * WARP + lane] = x[i];
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < rope.n_turned; i += WARP) {
        room.turns[i].x = rope_pair(rope, i).turned(room.values, room.turns[i]);
    }
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        if (i * WARP + lane < rope.n_turned) {
            x[i] = room.turns[i * WARP + lane].x;
        }
    }
    __syncwarp();
}

// What a warp does of a write. Beside those that write, blocks of few rows have warps that go through a step each for
// nothing, before the kernel before has ended: instructions come from memory anew in each layer, and these are then
// here.
namespace write_step {
constexpr uint32_t TURN = 1, TRANSFORM = 2, EXACT = 4, STORE = 8, ALL = ~0u;
}  // namespace write_step

// what is stored for nothing
static __device__ __align__(16) char nowhere[MOST_VALUES * sizeof(float)];

// a warp takes a piece of N values of one row
template <int N, typename formats>
__device__ void write_piece(const write_args & args, const int piece, const int lane, write_room & room,
                            const uint32_t steps) {
    const bool is_real = steps == write_step::ALL;
    const int64_t row = piece / args.pieces_per_row;
    const int at = piece % args.pieces_per_row * N;

    // neither the index nor factors nor center come from a kernel of the graph, nor positions: they are read while the
    // one before still runs
    const int64_t cell = args.indices && is_real ? args.indices[row] : row;
    float factor[N / WARP], center[N / WARP];
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        factor[i] = args.factors && is_real ? args.factors[at + i * WARP + lane] : 1.0f;
        center[i] = args.center && is_real ? args.center[at + i * WARP + lane] : 0.0f;
        if (args.centers && is_real) {
            center[i] = __half2float(args.centers[args.blocks[row] * args.row_length + at + i * WARP + lane]);
        }
    }

    if (is_real) {
        find_turns(args.rope, row, lane, room.turns);
        ggml_cuda_pdl_sync();
    }
    const float * source = args.rows + row * args.stride + at;
    float x[N / WARP];
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        x[i] = is_real ? source[i * WARP + lane] : 0;
    }
    if (args.rope.n_turned > 0 && (steps & write_step::TURN)) {
        turn<N>(args.rope, x, lane, room);
    }
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        x[i] = x[i] * factor[i] * args.scale;
    }
    __syncwarp();  // the row may be stored where it is
    if (args.is_rotated && (steps & write_step::TRANSFORM)) {
        transform<N>(x, lane);
    }
#pragma unroll
    for (int i = 0; i < N / WARP; ++i) {
        x[i] = args.center || args.centers ? x[i] - center[i] : x[i];
    }
    if (args.exact && (steps & write_step::EXACT)) {
        char * to = is_real ? args.exact + args.exact_indices[row] * args.exact_stride : nowhere;
        formats::template store_exact<N>(args, x, lane, to, is_real ? at : 0);
    }
    if (steps & write_step::STORE) {
        char * to = is_real ? args.cache + cell * args.cache_stride : nowhere;
        formats::template store<N>(args, x, room.values, lane, to, is_real ? at : 0);
    }
}

template <typename formats>
__global__ void __launch_bounds__(WARP * ALL_WARPS) write_rows(const KVTUNER_GRID_CONSTANT write_set set) {
    __shared__ write_room rooms[ROOMS];
    const write_args & args = set.of[blockIdx.y];
    const int first = blockIdx.x * WARPS_PER_BLOCK, step = (int)threadIdx.y - WARPS_PER_BLOCK;
    const int piece = step < 0 ? first + threadIdx.y : first;
    const uint32_t steps = step < 0 ? write_step::ALL : 1u << step;
    write_room & room = rooms[step < 0 ? threadIdx.y : ROOMS - (steps == write_step::STORE ? 1 : 2)];
    ggml_cuda_pdl_lc();
    if (piece >= args.n_pieces || (step >= 0 && !STARTS_EARLY)) {
        return;
    }
    switch (args.piece) {
#define KVTUNER_PIECE(N) \
    case N:              \
        return write_piece<N, formats>(args, piece, threadIdx.x, room, steps);
        KVTUNER_PIECE(32)
        KVTUNER_PIECE(64)
        KVTUNER_PIECE(128)
        KVTUNER_PIECE(256)
        KVTUNER_PIECE(512)
#undef KVTUNER_PIECE
    }
}

}  // namespace kvtuner::cuda
