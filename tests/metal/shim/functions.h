// Functions of one value and of several, with the overloads of Metal: a mixed call is ambiguous here, too.
#pragma once
#include "types.h"

namespace metal {

#define FUNCTION(name, expression)        \
    inline float name(float x) {          \
        return expression;                \
    }                                     \
    inline half name(half value) {        \
        const float x = (float)value;     \
        return (half)(expression);        \
    }                                     \
    template <class T, int N>             \
    vec<T, N> name(const vec<T, N> & a) { \
        vec<T, N> result;                 \
        for (int i = 0; i < N; i++) {     \
            result.v[i] = name(a.v[i]);   \
        }                                 \
        return result;                    \
    }
#define FUNCTIONS                              \
    FUNCTION(exp, __builtin_expf(x))           \
    FUNCTION(exp2, __builtin_exp2f(x))         \
    FUNCTION(log, __builtin_logf(x))           \
    FUNCTION(log2, __builtin_log2f(x))         \
    FUNCTION(sin, __builtin_sinf(x))           \
    FUNCTION(cos, __builtin_cosf(x))           \
    FUNCTION(sqrt, __builtin_sqrtf(x))         \
    FUNCTION(rsqrt, 1.0f / __builtin_sqrtf(x)) \
    FUNCTION(tanh, __builtin_tanhf(x))
FUNCTIONS
FUNCTION(fabs, __builtin_fabsf(x))
FUNCTION(abs, __builtin_fabsf(x))
FUNCTION(floor, __builtin_floorf(x))
FUNCTION(ceil, __builtin_ceilf(x))
FUNCTION(round, __builtin_roundf(x))
FUNCTION(rint, __builtin_rintf(x))
FUNCTION(sign, x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : 0.0f * x))
namespace precise {
FUNCTIONS
}
#undef FUNCTIONS
#undef FUNCTION

// a number without f is a float in Metal
inline float floor(double x) {
    return __builtin_floorf((float)x);
}
inline int abs(int x) {
    return x < 0 ? -x : x;
}
inline bool isfinite(float x) {
    return __builtin_isfinite(x);
}
inline bool isnan(float x) {
    return __builtin_isnan(x);
}
inline float pow(float a, float b) {
    return __builtin_powf(a, b);
}
inline float fma(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

#define EXTREMES(T)                 \
    inline T max(T a, T b) {        \
        return a < b ? b : a;       \
    }                               \
    inline T min(T a, T b) {        \
        return b < a ? b : a;       \
    }                               \
    inline T clamp(T x, T a, T b) { \
        return min(max(x, a), b);   \
    }
EXTREMES(short)
EXTREMES(ushort)
EXTREMES(int)
EXTREMES(uint)
EXTREMES(long)
EXTREMES(ulong)
EXTREMES(half)
#undef EXTREMES
inline float max(float a, float b) {
    return __builtin_fmaxf(a, b);
}
inline float min(float a, float b) {
    return __builtin_fminf(a, b);
}
inline float clamp(float x, float a, float b) {
    return min(max(x, a), b);
}

inline float fmax(float a, float b) {
    return max(a, b);
}
template <class T, int N>
vec<T, N> fmax(const vec<T, N> & a, const vec<T, N> & b) {
    vec<T, N> result;
    for (int i = 0; i < N; i++) {
        result.v[i] = max(a.v[i], b.v[i]);
    }
    return result;
}

template <class T>
T select(T a, T b, bool second) {
    return second ? b : a;
}
template <class T, int N>
T dot(const vec<T, N> & a, const vec<T, N> & b) {
    T sum = a.v[0] * b.v[0];
    for (int i = 1; i < N; i++) {
        sum += a.v[i] * b.v[i];
    }
    return sum;
}

}  // namespace metal
