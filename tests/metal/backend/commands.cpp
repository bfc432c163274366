#include "commands.h"

#include <algorithm>
#include <cstdlib>

void dispatched::run() const {
    std::vector<void *> given = buffers;
    for (size_t i = 0; i < given.size(); ++i) {
        given[i] = given[i] ? given[i] : const_cast<char *>(bytes[i].data());
    }
    kernel->dispatch(given, threadgroup_bytes, grid, threads);
}

void command_buffer::add(const dispatched & next) {
    const char * left_out = getenv("KVTUNER_METAL_NO_BARRIER");
    if (is_at_barrier && (!left_out || next.kernel->name != left_out)) {
        groups.emplace_back();
    }
    is_at_barrier = false;
    groups.back().push_back(next);
}

void command_buffer::run() const {
    const bool is_last_first = getenv("KVTUNER_METAL_LAST_FIRST");
    for (std::vector<dispatched> group : groups) {
        if (is_last_first) {
            std::reverse(group.begin(), group.end());
        }
        for (const dispatched & one : group) {
            one.run();
        }
    }
}
