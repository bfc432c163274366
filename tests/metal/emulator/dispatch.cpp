#include "dispatch.h"

#include <dlfcn.h>
#include <map>
#include <string>

#include "memory.h"
#include "scheduler.h"

namespace emulator {

struct Kernel {
    unsigned pointers;
    Call call;
};

static std::map<std::string, Kernel> & kernels() {
    static std::map<std::string, Kernel> by_name;
    return by_name;
}
static std::map<int, long> & constants() {
    static std::map<int, long> by_id;
    return by_id;
}
static std::map<int, void *> & variables() {
    static std::map<int, void *> by_line;
    return by_line;
}

Registrar::Registrar(const char * name, unsigned pointers, Call call) {
    kernels()[name] = { pointers, call };
}

const Identity & identity() {
    return scheduler().running->identity;
}
Exchange meet(Operation operation, const void * value, size_t size, int line) {
    return scheduler().meet(operation, value, size, line);
}
void threadgroup_barrier(int line) {
    if (scheduler().rules.skip_barrier != line) {
        scheduler().wait_for_threadgroup(line);
    }
}
void simdgroup_barrier(int line) {
    if (scheduler().rules.skip_barrier != line) {
        scheduler().meet(Operation::simdgroup_barrier, nullptr, 0, line);
    }
}
bool poisons() {
    return scheduler().rules.poison;
}
long function_constant(int id) {
    const auto found = constants().find(id);
    if (found == constants().end()) {
        scheduler().fail("function constant " + std::to_string(id) + " has no value");
    }
    return found->second;
}
void * threadgroup_variable(size_t size, int line) {
    void *& variable = variables()[line];
    if (!variable) {
        variable = memory().allocate(size, Use::threadgroup);
    }
    return variable;
}

// a place in the code as its offset in this library, for the reader to translate
static std::string offset(uintptr_t code) {
    Dl_info info;
    dladdr((void *)code, &info);
    char text[32];
    snprintf(text, sizeof text, "{+0x%zx}", (size_t)(code - 1 - (uintptr_t)info.dli_fbase));
    return text;
}
void fault(const char * kind, int line) {
    scheduler().fail(std::string(kind) + ", line " + std::to_string(line));
}
void memory_fault(const char * kind, uintptr_t code, uintptr_t other_code) {
    std::string message = std::string(kind) + " at " + offset(code);
    if (other_code) {
        message += " and " + offset(other_code);
    }
    scheduler().fail(message);
}

}  // namespace emulator

using namespace emulator;

extern "C" void emulator_clear() {
    memory().clear();
    constants().clear();
    variables().clear();
}
extern "C" void * emulator_allocate(size_t size, int use) {
    return memory().allocate(size, (Use)use);
}
extern "C" void emulator_set_constant(int id, long value) {
    constants()[id] = value;
}

extern "C" int emulator_pointers(const char * kernel) {
    const auto found = kernels().find(kernel);
    return found == kernels().end() ? -1 : (int)found->second.pointers;
}
extern "C" const char * emulator_dispatch(const emulator_dispatch_arguments * arguments) {
    static std::string failure;
    const auto found = kernels().find(arguments->kernel);
    if (found == kernels().end()) {
        return "no such kernel";
    }
    if (found->second.pointers != arguments->n_pointers) {
        return "the kernel has another number of buffers";
    }
    Scheduler & lanes = scheduler();
    memory().begin_dispatch();
    lanes.begin_dispatch(arguments->rules, arguments->threads, found->second.call, arguments->pointers);
    const Position grid = arguments->grid;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                if (!lanes.run({ x, y, z }, grid)) {
                    failure = lanes.failure;
                    return failure.c_str();
                }
            }
        }
    }
    return nullptr;
}
