#include "memory.h"

#include <cstring>
#include <sys/mman.h>

namespace emulator {

static constexpr size_t arena_bytes = size_t(1) << 30;
static constexpr size_t gap_bytes = 64 * 1024;

Memory & memory() {
    static Memory the_memory;
    return the_memory;
}

void * Memory::allocate(size_t size, Use use) {
    settle();
    if (!arena) {
        void * mapped =
                mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) {
            return nullptr;
        }
        arena = static_cast<char *>(mapped);
    }
    const size_t begin = (used + gap_bytes) / 256 * 256;
    if (begin + size + gap_bytes > arena_bytes) {
        return nullptr;
    }
    used = begin + size;
    memset(arena + begin, 0, size);
    regions.push_back({ arena + begin, size, use, std::vector<Byte>(use == Use::input ? 0 : size) });
    return arena + begin;
}

void Memory::clear() {
    regions.clear();
    used = 0;
}

void Memory::begin_dispatch() {
    moments.assign(1, Moment{});
    pending.region = nullptr;
    for (Region & region : regions) {
        region.bytes.assign(region.bytes.size(), Byte{});
    }
}

void Memory::begin_threadgroup() {
    for (Region & region : regions) {
        if (region.use == Use::threadgroup) {
            memset(region.begin, 0xFF, region.size);
            region.bytes.assign(region.size, Byte{});
        }
    }
}

void Memory::set_moment(const Moment & moment) {
    current = moment;
    moment_is_new = true;
}

Access Memory::here(uintptr_t code) {
    if (moment_is_new) {
        moments.push_back(current);
        moment_is_new = false;
    }
    return { (uint32_t)moments.size() - 1, code };
}

Memory::Region * Memory::find(const void * address, size_t size, uintptr_t code) {
    char * begin = static_cast<char *>(const_cast<void *>(address));
    if (begin < arena || begin >= arena + arena_bytes) {
        return nullptr;  // a lane's own variables, constants
    }
    for (Region & region : regions) {
        if (begin >= region.begin && begin + size <= region.begin + region.size) {
            return &region;
        }
    }
    memory_fault("out of bounds", code, 0);
}

bool Memory::conflict(const Access & earlier, const Access & now) const {
    if (!earlier.moment) {
        return false;
    }
    const Moment & a = moments[earlier.moment];
    const Moment & b = moments[now.moment];
    if (a.threadgroup != b.threadgroup) {
        return true;
    }
    if (a.lane == b.lane || a.threadgroup_barriers != b.threadgroup_barriers) {
        return false;
    }
    return a.simdgroup != b.simdgroup || a.simdgroup_barriers == b.simdgroup_barriers;
}

void Memory::check_read(Byte & byte, const Access & now) {
    if (conflict(byte.writer, now)) {
        memory_fault("race: read of what another lane writes", now.code, byte.writer.code);
    }
    if (byte.reader.moment) {
        const Moment & last = moments[byte.reader.moment];
        if (last.lane != current.lane || last.threadgroup != current.threadgroup) {
            byte.reader_of_other_lane = byte.reader;
        }
        if (last.simdgroup != current.simdgroup || last.threadgroup != current.threadgroup) {
            byte.reader_of_other_simdgroup = byte.reader;
        }
    }
    byte.reader = now;
}

void Memory::check_write(Byte & byte, const Access & now) {
    if (conflict(byte.writer, now)) {
        memory_fault("race: write of what another lane writes", now.code, byte.writer.code);
    }
    for (const Access * reader : { &byte.reader, &byte.reader_of_other_lane, &byte.reader_of_other_simdgroup }) {
        if (conflict(*reader, now)) {
            memory_fault("race: write of what another lane reads", now.code, reader->code);
        }
    }
    byte.writer = now;
}

void Memory::read(const void * address, size_t size, uintptr_t code) {
    settle();
    Region * region = find(address, size, code);
    if (!region || region->use == Use::input) {
        return;
    }
    const Access now = here(code);
    Byte * bytes = &region->bytes[static_cast<const char *>(address) - region->begin];
    for (size_t i = 0; i < size; i++) {
        if (region->use == Use::threadgroup && !bytes[i].writer.moment) {
            memory_fault("read of threadgroup memory that nobody wrote", code, 0);
        }
        check_read(bytes[i], now);
    }
}

void Memory::write(const void * address, size_t size, uintptr_t code) {
    settle();
    Region * region = find(address, size, code);
    if (!region) {
        return;
    }
    if (region->use == Use::input) {
        memory_fault("write to an input", code, 0);
    }
    char * begin = static_cast<char *>(const_cast<void *>(address));
    pending.region = region;
    pending.address = begin;
    pending.access = here(code);
    pending.before.assign(begin, begin + size);
}

void Memory::settle() {
    if (!pending.region) {
        return;
    }
    Byte * bytes = &pending.region->bytes[pending.address - pending.region->begin];
    pending.region = nullptr;
    for (size_t i = 0; i < pending.before.size(); i++) {
        if (!bytes[i].writer.moment || pending.address[i] != pending.before[i]) {
            check_write(bytes[i], pending.access);
        }
    }
}

}  // namespace emulator
