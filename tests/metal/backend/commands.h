// What encoders were given, which runs when a whole graph is encoded: between two barriers in order, or, with
// KVTUNER_METAL_LAST_FIRST, from the last to the first: what a barrier is missing for is wrong then.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "kernels.h"

struct dispatched {
    const MetalKernel * kernel;
    std::vector<std::vector<char>> bytes;
    std::vector<void *> buffers;  // null where a slot has bytes
    std::vector<size_t> threadgroup_bytes;
    emulator::Position grid, threads;

    void run() const;
};

// of one encoder
struct command_buffer {
    std::vector<std::vector<dispatched>> groups{ 1 };  // with a barrier between two
    bool is_at_barrier = false;

    // KVTUNER_METAL_NO_BARRIER names a kernel: a barrier just before it is left out
    void add(const dispatched & next);
    void run() const;
};
