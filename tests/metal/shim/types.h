// Scalars, vectors, matrices of vectors, and conversions between them as in Metal.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include "runtime.h"

#define __METAL_VERSION__ 310
#define FLT_MAX __FLT_MAX__
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXHALF ((half)65504.0f)
#define HALF_MAX MAXHALF
#define M_PI_F 3.14159265358979323846f

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using half = _Float16;
#if defined(GGML_METAL_HAS_BF16)
using bfloat = __bf16;
#endif

// lanes run one at a time: what other lanes do at the same place is no race
struct atomic_int {
    int value;
};
enum memory_order { memory_order_relaxed };
inline int atomic_fetch_add_explicit(atomic_int * to, int value, memory_order) {
    return __atomic_fetch_add(&to->value, value, __ATOMIC_RELAXED);
}

constexpr half operator""h(long double value) {
    return (half)value;
}

namespace metal {

using std::is_same;
template <class T>
constexpr bool is_scalar = std::is_arithmetic_v<T> || std::is_same_v<T, half> || std::is_same_v<T, __bf16>;
template <class T>
using if_scalar = std::enable_if_t<is_scalar<T>>;

// clang has no conversion from bfloat to half
template <class T, class From>
T convert(From value) {
    if constexpr (std::is_same_v<From, __bf16> || std::is_same_v<T, __bf16>) {
        return (T)(float)value;
    } else {
        return (T)value;
    }
}

template <class T, int N>
struct storage;
template <class T>
struct alignas(2 * sizeof(T)) storage<T, 2> {
    union {
        T v[2];
        struct {
            T x, y;
        };
    };
};
template <class T>
struct alignas(4 * sizeof(T)) storage<T, 3> {
    union {
        T v[3];
        struct {
            T x, y, z;
        };
    };
};
template <class T>
struct alignas(4 * sizeof(T)) storage<T, 4> {
    union {
        T v[4];
        struct {
            T x, y, z, w;
        };
        struct {
            storage<T, 2> xy, zw;
        };
    };
};

template <class T>
struct packed_vec4;

template <class T, int N>
struct vec : storage<T, N> {
    using storage<T, N>::v;
    vec() = default;
    vec(const storage<T, N> & part) : storage<T, N>(part) {
    }
    template <class S, class = if_scalar<S>>
    vec(S value) {
        for (int i = 0; i < N; i++) {
            v[i] = convert<T>(value);
        }
    }
    template <class S>
    explicit vec(const vec<S, N> & other) {
        for (int i = 0; i < N; i++) {
            v[i] = convert<T>(other.v[i]);
        }
    }
    template <class S>
    explicit vec(const packed_vec4<S> & other) : vec(other.v[0], other.v[1], other.v[2], other.v[3]) {
    }
    template <class A, class B, class... Rest, class = std::enable_if_t<is_scalar<A> && sizeof...(Rest) + 2 == N>>
    vec(A a, B b, Rest... rest) {
        const T values[] = { convert<T>(a), convert<T>(b), convert<T>(rest)... };
        for (int i = 0; i < N; i++) {
            v[i] = values[i];
        }
    }
    T & operator[](unsigned i) {
        return v[check(i)];
    }
    const T & operator[](unsigned i) const {
        return v[check(i)];
    }
    static unsigned check(unsigned i) {
        if (i >= N) {
            emulator::fault("subscript of a vector", 0);
        }
        return i;
    }
};

#define VECTOR_OPERATOR(op)                                           \
    template <class T, int N>                                         \
    vec<T, N> operator op(const vec<T, N> & a, const vec<T, N> & b) { \
        vec<T, N> result;                                             \
        for (int i = 0; i < N; i++) {                                 \
            result.v[i] = (T)(a.v[i] op b.v[i]);                      \
        }                                                             \
        return result;                                                \
    }                                                                 \
    template <class T, int N, class S, class = if_scalar<S>>          \
    vec<T, N> operator op(const vec<T, N> & a, S b) {                 \
        return a op vec<T, N>(b);                                     \
    }                                                                 \
    template <class T, int N, class S, class = if_scalar<S>>          \
    vec<T, N> operator op(S a, const vec<T, N> & b) {                 \
        return vec<T, N>(a) op b;                                     \
    }                                                                 \
    template <class T, int N, class B>                                \
    vec<T, N> & operator op##=(vec<T, N> & a, const B & b) {          \
        return a = a op b;                                            \
    }
VECTOR_OPERATOR(+)
VECTOR_OPERATOR(-)
VECTOR_OPERATOR(*)
VECTOR_OPERATOR(/)
VECTOR_OPERATOR(&)
VECTOR_OPERATOR(|)
VECTOR_OPERATOR(^)
VECTOR_OPERATOR(<<)
VECTOR_OPERATOR(>>)
#undef VECTOR_OPERATOR

// four values without the alignment of a vector
template <class T>
struct packed_vec4 {
    T v[4];
    operator vec<T, 4>() const {
        return vec<T, 4>(v[0], v[1], v[2], v[3]);
    }
    const T & operator[](unsigned i) const {
        return v[vec<T, 4>::check(i)];
    }
};

// columns of vectors
template <class T, int C, int R>
struct matrix {
    vec<T, R> column[C];
    matrix() = default;
    template <class S>
    explicit matrix(const matrix<S, C, R> & other) {
        for (int i = 0; i < C; i++) {
            column[i] = vec<T, R>(other.column[i]);
        }
    }
    vec<T, R> & operator[](unsigned i) {
        return column[vec<T, (C < 2 ? 2 : C)>::check(i)];
    }
    const vec<T, R> & operator[](unsigned i) const {
        return column[vec<T, (C < 2 ? 2 : C)>::check(i)];
    }
};

}  // namespace metal

#define VECTORS(T)                 \
    using T##2 = metal::vec<T, 2>; \
    using T##3 = metal::vec<T, 3>; \
    using T##4 = metal::vec<T, 4>;
VECTORS(char)
VECTORS(uchar)
VECTORS(short)
VECTORS(ushort)
VECTORS(int)
VECTORS(uint)
VECTORS(ulong)
VECTORS(half)
#if defined(GGML_METAL_HAS_BF16)
VECTORS(bfloat)
#endif
VECTORS(float)
#undef VECTORS
using packed_char4 = metal::packed_vec4<int8_t>;
using packed_uchar4 = metal::packed_vec4<uchar>;
using half2x4 = metal::matrix<half, 2, 4>;
using half4x4 = metal::matrix<half, 4, 4>;
using float2x4 = metal::matrix<float, 2, 4>;
using float4x4 = metal::matrix<float, 4, 4>;

template <class To, class From>
To as_type(const From & value) {
    static_assert(sizeof(To) == sizeof(From));
    return __builtin_bit_cast(To, value);
}
