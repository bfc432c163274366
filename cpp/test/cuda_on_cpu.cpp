#include "cuda_on_cpu.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace cuda_on_cpu {

namespace {

constexpr size_t STACK = 256 * 1024;

struct warp {
    int n_waiting = 0;
    unsigned n_exchanges = 0;
    uint32_t given[WARP];
    uint32_t taken[WARP];
};

struct fiber {
    ucontext_t context;
    std::vector<char> stack;
    index3 thread;
    bool is_done;
};

std::vector<fiber> fibers;
std::vector<warp> warps;
size_t running;
ucontext_t scheduler;
const std::function<void()> * kernel_of_fibers;

void start() {
    (*kernel_of_fibers)();
    fibers[running].is_done = true;
}

void prepare(fiber & f, index3 thread) {
    f.stack.resize(STACK);
    f.thread = thread;
    f.is_done = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &scheduler;
    makecontext(&f.context, start, 0);
}

unsigned n_exchanges() {
    unsigned n = 0;
    for (const warp & w : warps) {
        n += w.n_exchanges;
    }
    return n;
}

// each fiber up to where it waits; how many are done then
size_t step() {
    size_t n_done = 0;
    for (running = 0; running < fibers.size(); ++running) {
        fiber & f = fibers[running];
        if (!f.is_done) {
            threadIdx = f.thread;
            swapcontext(&scheduler, &f.context);
        }
        n_done += f.is_done;
    }
    return n_done;
}

void run_block(int x, int y) {
    fibers.resize(x * y);
    warps.assign(x * y / WARP, {});
    for (int i = 0; i < x * y; ++i) {
        prepare(fibers[i], { i % x, i / x, 0 });
    }
    for (size_t n_done = 0; n_done < fibers.size();) {
        const unsigned before = n_exchanges();
        const size_t n = step();
        if (n == n_done && n_exchanges() == before) {
            fprintf(stderr, "threads wait for one of their warp that is done\n");
            exit(2);
        }
        n_done = n;
    }
}

}  // namespace

void run(int n_blocks, int x, int y, const std::function<void()> & kernel) {
    kernel_of_fibers = &kernel;
    for (int b = 0; b < n_blocks; ++b) {
        blockIdx = { b, 0, 0 };
        run_block(x, y);
    }
}

uint32_t exchange(uint32_t value, int n) {
    const size_t self = running;
    warp & w = warps[self / WARP];
    const unsigned now = w.n_exchanges;
    w.given[self % WARP] = value;
    if (++w.n_waiting == WARP) {
        memcpy(w.taken, w.given, sizeof(w.taken));
        w.n_waiting = 0;
        ++w.n_exchanges;
    }
    while (w.n_exchanges == now) {
        swapcontext(&fibers[self].context, &scheduler);
    }
    return w.taken[(self % WARP) ^ n];
}

}  // namespace cuda_on_cpu
