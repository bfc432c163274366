// What clang calls before each access of a kernel's memory: -fsanitize=thread, with this in place of its library.
#include "memory.h"

#include <cstring>

#define HERE ((uintptr_t)__builtin_return_address(0))
#define ACCESS(size)                                               \
    extern "C" void __tsan_read##size(void * address) {            \
        emulator::memory().read(address, size, HERE);              \
    }                                                              \
    extern "C" void __tsan_write##size(void * address) {           \
        emulator::memory().write(address, size, HERE);             \
    }                                                              \
    extern "C" void __tsan_unaligned_read##size(void * address) {  \
        emulator::memory().read(address, size, HERE);              \
    }                                                              \
    extern "C" void __tsan_unaligned_write##size(void * address) { \
        emulator::memory().write(address, size, HERE);             \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

extern "C" void __tsan_init() {
}
extern "C" int __tsan_atomic32_fetch_add(volatile int * to, int value, int) {
    const int before = *to;
    *to = before + value;
    return before;
}
extern "C" void * __tsan_memcpy(void * to, const void * from, size_t size) {
    emulator::memory().read(from, size, HERE);
    emulator::memory().write(to, size, HERE);
    return memmove(to, from, size);
}
extern "C" void * __tsan_memmove(void * to, const void * from, size_t size) {
    emulator::memory().read(from, size, HERE);
    emulator::memory().write(to, size, HERE);
    return memmove(to, from, size);
}
extern "C" void * __tsan_memset(void * to, int value, size_t size) {
    emulator::memory().write(to, size, HERE);
    return memset(to, value, size);
}

// of clang's own library, which GCC's has since version 13 alone
extern "C" __attribute__((weak)) __bf16 __truncsfbf2(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += value == value ? 0x7FFF + (bits >> 16 & 1) : 0;
    const uint16_t high = (uint16_t)(bits >> 16);
    __bf16 result;
    memcpy(&result, &high, sizeof result);
    return result;
}

// what clang calls where a kernel does what C++ does not define: -fsanitize=undefined, with this in place of its
// library
#define UNDEFINED(name)                                       \
    extern "C" void __ubsan_handle_##name() {                 \
        emulator::memory_fault("undefined: " #name, HERE, 0); \
    }
UNDEFINED(type_mismatch_v1)
UNDEFINED(add_overflow)
UNDEFINED(sub_overflow)
UNDEFINED(mul_overflow)
UNDEFINED(negate_overflow)
UNDEFINED(divrem_overflow)
UNDEFINED(shift_out_of_bounds)
UNDEFINED(out_of_bounds)
UNDEFINED(float_cast_overflow)
UNDEFINED(load_invalid_value)
UNDEFINED(pointer_overflow)
UNDEFINED(builtin_unreachable)
UNDEFINED(missing_return)
