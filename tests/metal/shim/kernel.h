// Address spaces, built-in values, function constants, and kernels by their host names.
#pragma once
#include <tuple>
#include "matrix8x8.h"

namespace emulator {

// a value of three, or its first alone, whatever the parameter's type
struct Triple {
    Position value;
    template <class T>
    operator metal::vec<T, 3>() const {
        return metal::vec<T, 3>(value.x, value.y, value.z);
    }
    template <class T>
    operator metal::vec<T, 2>() const {
        return metal::vec<T, 2>(value.x, value.y);
    }
    operator uint() const {
        return value.x;
    }
    operator ushort() const {
        return (ushort)value.x;
    }
};

inline Triple threadgroup_position_in_grid() {
    return { identity().threadgroup };
}
inline Triple thread_position_in_threadgroup() {
    return { identity().in_threadgroup };
}
inline Triple threads_per_threadgroup() {
    return { identity().threads };
}
inline Triple threadgroups_per_grid() {
    return { identity().grid };
}
inline Triple thread_position_in_grid() {
    const Identity & me = identity();
    return { { me.threadgroup.x * me.threads.x + me.in_threadgroup.x,
               me.threadgroup.y * me.threads.y + me.in_threadgroup.y,
               me.threadgroup.z * me.threads.z + me.in_threadgroup.z } };
}
inline uint thread_index_in_threadgroup() {
    return identity().index;
}
inline uint thread_index_in_simdgroup() {
    return identity().lane;
}
inline uint simdgroup_index_in_threadgroup() {
    return identity().simdgroup;
}
inline uint simdgroups_per_threadgroup() {
    return identity().simdgroups;
}

// read when it is used: one compilation serves all pipelines
template <class T>
struct FunctionConstant {
    int id;
    operator T() const {
        return (T)function_constant(id);
    }
};

// the leading pointers and references of a kernel; what follows has default arguments
template <class F>
struct Signature;
template <class... A>
struct Signature<void(A...)> {
    static constexpr unsigned pointers = (0u + ... + (unsigned)(std::is_pointer_v<A> || std::is_reference_v<A>));
    template <size_t I>
    using Argument = std::tuple_element_t<I, std::tuple<A...>>;
    template <size_t I>
    static Argument<I> argument(void ** given) {
        if constexpr (std::is_pointer_v<Argument<I>>) {
            return static_cast<Argument<I>>(given[I]);
        } else {
            return *static_cast<std::remove_reference_t<Argument<I>> *>(given[I]);
        }
    }
    template <class Function, size_t... I>
    static void call(Function function, void ** given, std::index_sequence<I...>) {
        function(argument<I>(given)...);
    }
};

}  // namespace emulator

#define EMULATOR_JOIN_(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)
#define EMULATE(name, ...)                                                                                            \
    static const emulator::Registrar EMULATOR_JOIN(                                                                   \
            registrar_, __COUNTER__){ name, emulator::Signature<decltype(__VA_ARGS__)>::pointers, [](void ** given) { \
                                         using Type = emulator::Signature<decltype(__VA_ARGS__)>;                     \
                                         Type::call([](auto &&... argument) { __VA_ARGS__(argument...); }, given,     \
                                                    std::make_index_sequence<Type::pointers>());                      \
                                     } };

#define kernel
#define device
#define threadgroup
#define thread
#define constant const
