// A stack of its own for each lane, entered and left without a system call.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <memory>
#include <ucontext.h>

namespace emulator {

class Fiber {
public:
    // runs `body` from its start at the next `resume`; `body` leaves by `leave` alone
    void start(void (*body)());
    // until the fiber leaves
    void resume();
    // back to where it was resumed
    void leave();
    // leaves for good: what was on its stack is lost
    [[noreturn]] void abandon();

private:
    static constexpr size_t stack_bytes = 256 * 1024;
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf inside, outside;
    bool started = false;
};

}  // namespace emulator
