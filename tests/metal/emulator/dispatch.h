// The emulator as a C library: memory, function constants, and dispatches of kernels by name.
#pragma once
#include "runtime.h"

namespace emulator {

enum class Order { forward, reverse, random };

struct Rules {
    Order order;
    unsigned seed;
    bool strict;       // only barriers order memory, not every operation of a simdgroup
    bool poison;       // garbage for lanes past a shuffle's end
    int skip_barrier;  // the line of a barrier that is left out, or 0
};

}  // namespace emulator

struct emulator_dispatch_arguments {
    const char * kernel;
    void ** pointers;  // buffers, then threadgroup memory
    unsigned n_pointers;
    emulator::Position grid, threads;
    emulator::Rules rules;
};

extern "C" {
// forgets memory and function constants
void emulator_clear();
// memory that is watched, by `emulator::Use`; accesses to any other are not
void * emulator_allocate(size_t size, int use);
void emulator_set_constant(int id, long value);
// how many pointers a kernel takes, or -1
int emulator_pointers(const char * kernel);
// what went wrong, or nullptr
const char * emulator_dispatch(const emulator_dispatch_arguments * arguments);
}
