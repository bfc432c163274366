#include "fiber.h"

namespace emulator {

void Fiber::start(void (*body)()) {
    if (!stack) {
        stack.reset(new char[stack_bytes]);
    }
    getcontext(&context);
    context.uc_stack.ss_sp = stack.get();
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
    started = false;
}

void Fiber::resume() {
    if (_setjmp(outside) != 0) {
        return;
    }
    if (started) {
        _longjmp(inside, 1);
    }
    started = true;
    setcontext(&context);
}

void Fiber::leave() {
    if (_setjmp(inside) == 0) {
        _longjmp(outside, 1);
    }
}

void Fiber::abandon() {
    _longjmp(outside, 1);
}

}  // namespace emulator
