#include "scheduler.h"

#include <cstring>

#include "memory.h"

namespace emulator {

static const char * const operation_names[] = { "the start",          "simd_sum",          "simd_max",
                                                "simd_min",           "a prefix sum",      "a shuffle",
                                                "a matrix operation", "simdgroup_barrier", "threadgroup_barrier" };

static std::string describe(const Lane & lane) {
    return "lane " + std::to_string(lane.identity.index) + " at " + operation_names[(int)lane.operation] + ", line " +
           std::to_string(lane.line);
}

Scheduler & scheduler() {
    static Scheduler the_scheduler;
    return the_scheduler;
}

void Scheduler::lane_body() {
    for (;;) {
        Scheduler & me = scheduler();
        me.kernel(me.pointers);
        memory().settle();
        Lane & lane = *me.running;
        me.group_of(lane).present &= ~(1u << lane.identity.lane);
        me.group_of(lane).any_ended = true;
        lane.fiber.leave();
    }
}

Simdgroup & Scheduler::group_of(const Lane & lane) {
    return simdgroups[lane.identity.simdgroup];
}

bool Scheduler::is_present(const Lane & lane) {
    return group_of(lane).present >> lane.identity.lane & 1;
}

void Scheduler::begin_dispatch(const Rules & new_rules, Position new_threads, Call new_kernel, void ** new_pointers) {
    rules = new_rules;
    threads = new_threads;
    kernel = new_kernel;
    pointers = new_pointers;
    random.seed(rules.seed);
    failed = false;
    failure.clear();
    threadgroup_number = 0;
    const size_t count = (size_t)threads.x * threads.y * threads.z;
    while (lanes.size() < count) {
        lanes.push_back(std::make_unique<Lane>());
    }
    lanes.resize(count);
    for (auto & lane : lanes) {
        lane->fiber.start(lane_body);
    }
    simdgroups.assign((count + lanes_per_simdgroup - 1) / lanes_per_simdgroup, Simdgroup{});
}

bool Scheduler::run(Position threadgroup, Position grid) {
    threadgroup_number++;
    threadgroup_barriers = 0;
    simdgroups.assign(simdgroups.size(), Simdgroup{});
    memory().begin_threadgroup();
    for (unsigned i = 0; i < lanes.size(); i++) {
        Lane & lane = *lanes[i];
        const Position place{ i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y };
        lane.identity = { place,
                          threadgroup,
                          threads,
                          grid,
                          i,
                          i % lanes_per_simdgroup,
                          i / lanes_per_simdgroup,
                          (unsigned)simdgroups.size() };
        lane.operation = Operation::none;
        lane.line = 0;
        lane.simdgroup_barriers = 0;
        group_of(lane).present |= 1u << lane.identity.lane;
        group_of(lane).ready |= 1u << lane.identity.lane;
    }
    for (;;) {
        while (release_simdgroups()) {
        }
        if (failed) {
            return false;
        }
        if (Lane * lane = next()) {
            resume(*lane);
        } else if (!release_threadgroup()) {
            return !failed;
        }
    }
}

// forward and reverse run a simdgroup as far as it goes before another: the largest skew between them
Lane * Scheduler::next() {
    unsigned ready = 0;
    for (const Simdgroup & group : simdgroups) {
        ready += __builtin_popcount(group.ready);
    }
    if (!ready) {
        return nullptr;
    }
    unsigned skip = rules.order == Order::forward ? 0 : ready - 1;
    if (rules.order == Order::random) {
        skip = random() % ready;
    }
    unsigned first = 0;
    for (const Simdgroup & group : simdgroups) {
        for (uint32_t left = group.ready; left; left &= left - 1) {
            if (!skip--) {
                return lanes[first + __builtin_ctz(left)].get();
            }
        }
        first += lanes_per_simdgroup;
    }
    return nullptr;
}

void Scheduler::remember_moment(const Lane & lane) {
    memory().set_moment({ lane.identity.index, lane.identity.simdgroup, threadgroup_number, threadgroup_barriers,
                          lane.simdgroup_barriers });
}

void Scheduler::resume(Lane & lane) {
    running = &lane;
    group_of(lane).ready &= ~(1u << lane.identity.lane);
    remember_moment(lane);
    lane.fiber.resume();
    running = nullptr;
}

Exchange Scheduler::meet(Operation operation, const void * value, size_t size, int line) {
    memory().settle();
    Lane & lane = *running;
    Simdgroup & group = group_of(lane);
    auto & slots = group.slots[group.generation % 2];
    if (size) {
        memcpy(&slots[lane.identity.lane * slot_bytes], value, size);
    }
    lane.operation = operation;
    lane.line = line;
    group.waiting |= 1u << lane.identity.lane;
    lane.fiber.leave();
    return { slots.data(), group.active };
}

void Scheduler::wait_for_threadgroup(int line) {
    memory().settle();
    Lane & lane = *running;
    lane.operation = Operation::threadgroup_barrier;
    lane.line = line;
    group_of(lane).at_threadgroup_barrier |= 1u << lane.identity.lane;
    lane.fiber.leave();
}

void Scheduler::fail(const std::string & message) {
    stop(message + " (" + describe(*running) + " before it)");
    running->fiber.abandon();
}

void Scheduler::stop(const std::string & message) {
    if (!failed) {
        failed = true;
        failure = message;
    }
}

void Scheduler::stop_at_divergence(unsigned simdgroup) {
    const Lane * first = nullptr;
    const Simdgroup & group = simdgroups[simdgroup];
    for (auto & lane : lanes) {
        if (lane->identity.simdgroup != simdgroup || !is_present(*lane)) {
            continue;
        }
        if (!first) {
            first = lane.get();
        } else if (lane->operation != first->operation || lane->line != first->line) {
            return stop("divergence: " + describe(*first) + ", " + describe(*lane));
        }
    }
    if (first && group.any_ended && first->operation >= Operation::simdgroup_barrier) {
        stop("divergence: " + describe(*first) + ", and others have ended");
    }
}

bool Scheduler::release_simdgroups() {
    bool released = false;
    for (unsigned i = 0; i < simdgroups.size(); i++) {
        Simdgroup & group = simdgroups[i];
        if (!group.waiting || group.ready) {
            continue;
        }
        stop_at_divergence(i);
        if (failed) {
            return false;
        }
        for (uint32_t left = group.waiting; left; left &= left - 1) {
            Lane & lane = *lanes[i * lanes_per_simdgroup + __builtin_ctz(left)];
            lane.simdgroup_barriers += !rules.strict || lane.operation == Operation::simdgroup_barrier;
        }
        group.active = group.ready = group.waiting;
        group.waiting = 0;
        group.generation++;
        released = true;
    }
    return released;
}

// false at the end
bool Scheduler::release_threadgroup() {
    const Lane * first = nullptr;
    const Lane * gone = nullptr;
    for (auto & lane : lanes) {
        if (!is_present(*lane)) {
            gone = lane.get();
        } else if (!first) {
            first = lane.get();
        } else if (lane->line != first->line) {
            stop("divergence: " + describe(*first) + ", " + describe(*lane));
        }
    }
    if (first && gone) {
        stop("divergence: " + describe(*first) + ", and lane " + std::to_string(gone->identity.index) + " has ended");
    }
    if (!first || failed) {
        return false;
    }
    for (Simdgroup & group : simdgroups) {
        group.ready = group.at_threadgroup_barrier;
        group.at_threadgroup_barrier = 0;
    }
    threadgroup_barriers++;
    return true;
}

}  // namespace emulator
