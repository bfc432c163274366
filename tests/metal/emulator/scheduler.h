// The lanes of one threadgroup, in the order that is asked for, from rendezvous to rendezvous.
#pragma once
#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "fiber.h"

namespace emulator {

struct Lane {
    Identity identity;
    Fiber fiber;
    Operation operation;
    int line;
    unsigned simdgroup_barriers;
};

struct Simdgroup {
    uint32_t present;                                 // a bit for each lane that has not ended
    uint32_t ready, waiting, at_threadgroup_barrier;  // each of them is in one of these, or runs
    bool any_ended;
    uint32_t active;  // who took part in the last operation: some may have ended since
    unsigned generation;
    // of two operations in a row: a fast lane may be at the next one while a slow one still reads
    std::array<std::array<unsigned char, slot_bytes * lanes_per_simdgroup>, 2> slots;
};

class Scheduler {
public:
    // runs a threadgroup to its end; false after a fault
    bool run(Position threadgroup, Position grid);
    void begin_dispatch(const Rules & rules, Position threads, Call kernel, void ** pointers);

    Exchange meet(Operation operation, const void * value, size_t size, int line);
    void wait_for_threadgroup(int line);
    [[noreturn]] void fail(const std::string & message);

    Lane * running = nullptr;
    Rules rules{};
    std::string failure;

private:
    static void lane_body();
    Simdgroup & group_of(const Lane & lane);
    bool is_present(const Lane & lane);
    Lane * next();
    void resume(Lane & lane);
    bool release_simdgroups();
    bool release_threadgroup();
    void remember_moment(const Lane & lane);
    void stop(const std::string & message);
    void stop_at_divergence(unsigned simdgroup);

    std::vector<std::unique_ptr<Lane>> lanes;
    std::vector<Simdgroup> simdgroups;
    std::mt19937 random;
    Position threads{};
    Call kernel = nullptr;
    void ** pointers = nullptr;
    unsigned threadgroup_barriers = 0;
    unsigned threadgroup_number = 0;
    bool failed = false;
};

Scheduler & scheduler();

}  // namespace emulator
