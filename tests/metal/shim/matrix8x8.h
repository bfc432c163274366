// Matrices of 8 x 8 that a simdgroup holds together: each lane has two neighbours of a row.
#pragma once
#include "simdgroup.h"

namespace metal {

// the row, and the first of the two columns, of a lane: Apple's map
inline unsigned row_of(unsigned lane) {
    return (lane / 4 & 4) + lane / 2 % 4;
}
inline unsigned column_of(unsigned lane) {
    return (lane / 4 & 2) * 2 + lane % 2 * 2;
}

template <class T, int C, int R>
struct simdgroup_matrix {
    static_assert(C == 8 && R == 8);
    vec<T, 2> mine;
    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal) {
        const unsigned lane = emulator::identity().lane;
        for (unsigned k = 0; k < 2; k++) {
            mine[k] = row_of(lane) == column_of(lane) + k ? diagonal : (T)0.0f;
        }
    }
    vec<T, 2> & thread_elements() {
        return mine;
    }
};
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<__bf16, 8, 8>;
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

template <class T, int C, int R = C>
simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, C, R> result;
    result.mine = vec<T, 2>(value);
    return result;
}

inline void matrix_step(int line) {
    emulator::meet(emulator::Operation::matrix, nullptr, 0, line);
}
inline ulong place_of(unsigned k, ulong stride, const ulong2 & origin, bool transposed) {
    const unsigned lane = emulator::identity().lane;
    ulong row = row_of(lane), column = column_of(lane) + k;
    if (transposed) {
        std::swap(row, column);
    }
    return (origin[1] + row) * stride + origin[0] + column;
}

template <class T>
void simdgroup_load(simdgroup_matrix<T, 8, 8> & to, const T * from, ulong stride = 8, ulong2 origin = ulong2(0),
                    bool transposed = false, int line = __builtin_LINE()) {
    matrix_step(line);
    for (unsigned k = 0; k < 2; k++) {
        to.mine[k] = from[place_of(k, stride, origin, transposed)];
    }
    matrix_step(line);
}
template <class T>
void simdgroup_store(const simdgroup_matrix<T, 8, 8> & from, T * to, ulong stride = 8, ulong2 origin = ulong2(0),
                     bool transposed = false, int line = __builtin_LINE()) {
    matrix_step(line);
    for (unsigned k = 0; k < 2; k++) {
        to[place_of(k, stride, origin, transposed)] = from.mine[k];
    }
    matrix_step(line);
}

// result = a * b + c, sums in float
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> & result, const simdgroup_matrix<A, 8, 8> & a,
                                   const simdgroup_matrix<B, 8, 8> & b, const simdgroup_matrix<C, 8, 8> & c,
                                   int line = __builtin_LINE()) {
    struct Both {
        vec<A, 2> a;
        vec<B, 2> b;
    };
    const auto all = give(emulator::Operation::matrix, Both{ a.mine, b.mine }, line);
    if (all.active != ~0u) {
        emulator::fault("a matrix product without all lanes", line);
    }
    const unsigned me = emulator::identity().lane;
    float left[8], right[8][2];
    for (unsigned lane = 0; lane < 32; lane++) {
        const Both both = of_lane<Both>(all, lane);
        for (unsigned k = 0; k < 2; k++) {
            if (row_of(lane) == row_of(me)) {
                left[column_of(lane) + k] = (float)both.a.v[k];
            }
            if (column_of(lane) == column_of(me)) {
                right[row_of(lane)][k] = (float)both.b.v[k];
            }
        }
    }
    for (unsigned k = 0; k < 2; k++) {
        float sum = (float)c.mine.v[k];
        for (unsigned i = 0; i < 8; i++) {
            sum += left[i] * right[i][k];
        }
        result.mine[k] = (D)sum;
    }
}
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8> & result, const simdgroup_matrix<A, 8, 8> & a,
                        const simdgroup_matrix<B, 8, 8> & b, int line = __builtin_LINE()) {
    simdgroup_multiply_accumulate(result, a, b, make_filled_simdgroup_matrix<D, 8>((D)0.0f), line);
}

}  // namespace metal
