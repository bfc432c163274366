// Kernels that the emulator runs for the back end: each in a library of its own, compiled when it first runs.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "dispatch.h"

struct MetalKernel {
    std::string text;  // the file that it is in; empty for upstream's
    std::string name;
    std::map<int, long> constants;

    // runs it, with buffers that are not watched and threadgroup memory that is; ends the program after a fault
    void dispatch(const std::vector<void *> & buffers, const std::vector<size_t> & threadgroup_bytes,
                  emulator::Position grid, emulator::Position threads) const;

    struct Library {
        decltype(emulator_clear) * clear;
        decltype(emulator_allocate) * allocate;
        decltype(emulator_set_constant) * set_constant;
        decltype(emulator_pointers) * pointers;
        decltype(emulator_dispatch) * dispatch;
    };
};

// a file with these words, the same for the same ones
std::string metal_text(const std::string & source);
