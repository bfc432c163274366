// What kernels, compiled as C++, ask of the emulator. A lane is a GPU thread, a simdgroup 32 of them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr unsigned lanes_per_simdgroup = 32;
constexpr size_t slot_bytes = 64;  // what a lane can hand to the others in one operation

enum class Operation { none, sum, max, min, prefix, shuffle, matrix, simdgroup_barrier, threadgroup_barrier };

struct Position {
    unsigned x, y, z;
};

// the built-in values of the running lane
struct Identity {
    Position in_threadgroup, threadgroup, threads, grid;
    unsigned index, lane, simdgroup, simdgroups;
};

const Identity & identity();

// what the lanes of a simdgroup put down; those in `active` did
struct Exchange {
    const unsigned char * slots;
    uint32_t active;
};

// waits until all lanes of the simdgroup are at the same operation and line
Exchange meet(Operation operation, const void * value, size_t size, int line);
void threadgroup_barrier(int line);
void simdgroup_barrier(int line);

// memory of the threadgroup that a kernel declares in its body, the same for all lanes at a line
void * threadgroup_variable(size_t size, int line);

long function_constant(int id);
bool poisons();  // lanes past a shuffle's end get garbage

// ends the dispatch; does not return
[[noreturn]] void fault(const char * kind, int line);

using Call = void (*)(void ** pointers);

// a kernel by its host name, with the number of its buffers and threadgroup pointers
struct Registrar {
    Registrar(const char * name, unsigned pointers, Call call);
};

}  // namespace emulator
