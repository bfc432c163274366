// Memory that kernels may touch, with what each byte went through since the dispatch began.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

enum class Use { input, output, threadgroup };

// where in the order of a dispatch an access took place: two are ordered if a barrier lies between them
struct Moment {
    unsigned lane, simdgroup, threadgroup;
    unsigned threadgroup_barriers, simdgroup_barriers;
};

// a moment by its number, 0 for none, and the place in the code
struct Access {
    uint32_t moment = 0;
    uintptr_t code = 0;
};

// the last accesses that can conflict with a later one: those by other lanes and simdgroups, too
struct Byte {
    Access writer, reader, reader_of_other_lane, reader_of_other_simdgroup;
};

class Memory {
public:
    // `size` zeroed bytes with much room around them that belongs to nobody; nullptr where there is no more
    void * allocate(size_t size, Use use);
    // forgets all that was allocated
    void clear();

    void begin_dispatch();
    // fills the memory of a threadgroup with garbage that nobody wrote
    void begin_threadgroup();
    // of all accesses that follow
    void set_moment(const Moment & moment);

    void read(const void * address, size_t size, uintptr_t code);
    // looked at when the next access or `settle` follows: a write that changes nothing conflicts with nothing
    void write(const void * address, size_t size, uintptr_t code);
    void settle();

private:
    struct Region {
        char * begin;
        size_t size;
        Use use;
        std::vector<Byte> bytes;
    };
    struct PendingWrite {
        Region * region = nullptr;
        char * address = nullptr;
        Access access;
        std::vector<char> before;
    };

    Region * find(const void * address, size_t size, uintptr_t code);
    Access here(uintptr_t code);
    bool conflict(const Access & earlier, const Access & now) const;
    void check_read(Byte & byte, const Access & now);
    void check_write(Byte & byte, const Access & now);

    char * arena = nullptr;
    size_t used = 0;
    std::vector<Region> regions;
    std::vector<Moment> moments;
    bool moment_is_new = true;
    Moment current{};
    PendingWrite pending;
};

Memory & memory();

// what went wrong with memory, and where; implemented by the dispatch
[[noreturn]] void memory_fault(const char * kind, uintptr_t code, uintptr_t other_code);

}  // namespace emulator
