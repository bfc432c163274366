// Barriers, and what the lanes of a simdgroup do together.
#pragma once
#include "functions.h"

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) {
    return (mem_flags)((int)a | (int)b);
}
inline void threadgroup_barrier(mem_flags, int line = __builtin_LINE()) {
    emulator::threadgroup_barrier(line);
}
inline void simdgroup_barrier(mem_flags, int line = __builtin_LINE()) {
    emulator::simdgroup_barrier(line);
}

template <class T>
T of_lane(const emulator::Exchange & all, unsigned lane) {
    T value;
    __builtin_memcpy(&value, all.slots + lane * emulator::slot_bytes, sizeof(T));
    return value;
}
template <class T>
emulator::Exchange give(emulator::Operation operation, const T & value, int line) {
    static_assert(sizeof(T) <= emulator::slot_bytes);
    return emulator::meet(operation, &value, sizeof(T), line);
}
inline bool is_active(const emulator::Exchange & all, unsigned lane) {
    return all.active >> lane & 1;
}

// combines the values of the lanes [0, end) one after the other
template <class T, class Combine>
T combined(const emulator::Exchange & all, T start, unsigned end, Combine combine) {
    for (unsigned lane = 0; lane < end; lane++) {
        if (is_active(all, lane)) {
            start = combine(start, of_lane<T>(all, lane));
        }
    }
    return start;
}
template <class T>
T simd_sum(T value, int line = __builtin_LINE()) {
    const auto all = give(emulator::Operation::sum, value, line);
    return combined<T>(all, T(0.0f), 32, [](T a, T b) { return (T)(a + b); });
}
template <class T>
T simd_max(T value, int line = __builtin_LINE()) {
    return combined<T>(give(emulator::Operation::max, value, line), value, 32, [](T a, T b) { return max(a, b); });
}
template <class T>
T simd_min(T value, int line = __builtin_LINE()) {
    return combined<T>(give(emulator::Operation::min, value, line), value, 32, [](T a, T b) { return min(a, b); });
}
template <class T>
T simd_prefix_exclusive_sum(T value, int line = __builtin_LINE()) {
    const auto all = give(emulator::Operation::prefix, value, line);
    return combined<T>(all, T(0), emulator::identity().lane, [](T a, T b) { return (T)(a + b); });
}
template <class T>
T simd_prefix_inclusive_sum(T value, int line = __builtin_LINE()) {
    const auto all = give(emulator::Operation::prefix, value, line);
    return combined<T>(all, T(0), emulator::identity().lane + 1, [](T a, T b) { return (T)(a + b); });
}

// past the end a lane keeps its value, says Apple; kernels must not rely on it, and get garbage
template <class T>
T shuffled(T value, unsigned source, int line) {
    const auto all = give(emulator::Operation::shuffle, value, line);
    if (source >= 32) {
        if (emulator::poisons()) {
            __builtin_memset(&value, 0xFF, sizeof(T));
        }
        return value;
    }
    if (!is_active(all, source)) {
        emulator::fault("shuffle from a lane that has ended", line);
    }
    return of_lane<T>(all, source);
}
template <class T>
T simd_shuffle(T value, ushort lane, int line = __builtin_LINE()) {
    if (lane >= 32) {
        emulator::fault("shuffle from a lane that does not exist", line);
    }
    return shuffled(value, lane, line);
}
template <class T>
T simd_broadcast(T value, ushort lane, int line = __builtin_LINE()) {
    return simd_shuffle(value, lane, line);
}
template <class T>
T simd_shuffle_down(T value, ushort delta, int line = __builtin_LINE()) {
    return shuffled(value, emulator::identity().lane + delta, line);
}
template <class T>
T simd_shuffle_up(T value, ushort delta, int line = __builtin_LINE()) {
    return shuffled(value, emulator::identity().lane - delta, line);
}
template <class T>
T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
    return simd_shuffle(value, emulator::identity().lane ^ mask, line);
}

}  // namespace metal
