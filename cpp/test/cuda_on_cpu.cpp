#include "cuda_on_cpu.h"

#include "fiber.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

using kvtuner::cuda::shared;

half::operator float() const {
    static const std::vector<float> all = [] {
        std::vector<float> values(1 << 16);
        for (size_t i = 0; i < values.size(); ++i) {
            values[i] = ggml_fp16_to_fp32((ggml_fp16_t)i);
        }
        return values;
    }();
    return all[bits];
}

namespace cuda_on_cpu {

namespace {

constexpr int N_BARRIERS = 16;
constexpr char UNWRITTEN = (char)0xff;  // as floats and halves no numbers

struct warp {
    int n_waiting = 0;
    unsigned n_exchanges = 0;
    together what;
    words given[2][WARP];  // to this exchange and the one before
};

struct barrier {
    int n_waiting = 0;
    unsigned n_passed = 0;
};

struct copy {
    char * to;
    const void * from;
    int n_bytes;
};

struct fiber {
    emulator::Fiber run;
    dim3 thread;
    bool is_done;
    std::vector<copy> copies;  // that no barrier waits for yet
};

// a barrier in shared memory
struct phases {
    static constexpr uint32_t MADE = 0x5a;

    int32_t n_bytes;
    uint32_t n_arrivals : 11, n_missing : 11, phase : 1, made : 9;

    void end_phase() {
        if (n_missing == 0 && n_bytes == 0) {
            n_missing = n_arrivals;
            phase ^= 1;
        }
    }
};

// a copy that a barrier waits for: for its bytes, or for the arrival after it; or for neither, where more come before
struct phase_copy {
    copy what;
    uint32_t barrier;
    int n_bytes, n_arrivals;
};

std::vector<fiber> fibers;
std::vector<warp> warps;
std::vector<barrier> barriers;
std::vector<phase_copy> phase_copies;
size_t running;
int n_idle, n_idle_of_warp;  // switches since a thread got on, and those of the running warp
const std::function<void()> * kernel_of_fibers;
int shared_size;

void got_on() {
    n_idle = n_idle_of_warp = 0;
}

void start() {
    (*kernel_of_fibers)();
    fibers[running].is_done = true;
    got_on();
    fibers[running].run.leave();
}

void prepare(fiber & f, dim3 thread) {
    f.thread = thread;
    f.is_done = false;
    f.copies.clear();
    f.run.start(start);
}

size_t next_to(size_t i, size_t n) {
    return (i + (how.is_backward ? n - 1 : 1)) % n;
}

// A thread that is not done: of the same warp as long as its threads get on.
void choose_next() {
    if (++n_idle > 4 * (int)(fibers.size() + warps.size())) {
        fail("threads wait for what never comes");
    }
    size_t of_warp = running / WARP, lane = running % WARP;
    do {
        if (n_idle_of_warp++ > WARP) {
            of_warp = next_to(of_warp, warps.size());
            n_idle_of_warp = 0;
        }
        lane = next_to(lane, WARP);
    } while (fibers[of_warp * WARP + lane].is_done);
    running = of_warp * WARP + lane;
    threadIdx = fibers[running].thread;
}

void let_others_run() {
    const size_t self = running;
    choose_next();
    if (running != self) {
        fibers[self].run.leave();
    }
}

void make(const copy & c) {
    if (c.n_bytes > 0) {
        memcpy(c.to, c.from, c.n_bytes);
    }
}

void check_block() {
    const auto is_unwritten = [](const char * memory) {
        return std::all_of(memory + shared_size, memory + MOST_SHARED, [](char c) { return c == UNWRITTEN; });
    };
    if (shared_size > 0 && !is_unwritten(shared)) {
        fail("written behind the shared memory of a block");
    }
    const auto has_copies = [](const fiber & f) { return !f.copies.empty(); };
    if (!phase_copies.empty() || std::any_of(fibers.begin(), fibers.end(), has_copies)) {
        fail("a copy in the background that nothing waited for");
    }
}

void run_block(const dim3 & threads) {
    const int n = threads.x * threads.y;
    fibers.resize(n);
    warps.assign(n / WARP, {});
    barriers.assign(N_BARRIERS, {});
    for (int i = 0; i < n; ++i) {
        prepare(fibers[i], { i % threads.x, i / threads.x, 0 });
    }
    memset(shared, UNWRITTEN, shared_size);
    got_on();
    running = how.is_backward ? 0 : n - 1;
    choose_next();
    for (int n_left = n; n_left > 0;) {
        fibers[running].run.resume();  // until it has chosen another one, or is done
        if (fibers[running].is_done && --n_left > 0) {
            choose_next();
        }
    }
    check_block();
}

phases & phases_at(uint32_t barrier) {
    phases & p = *(phases *)shared_bytes_at(barrier, sizeof(phases));
    if (p.made != phases::MADE) {
        fail("no barrier was made here");
    }
    return p;
}

// arrivals at a barrier, of which it may miss none any more
void get_on(uint32_t barrier, int n_arrivals) {
    phases & p = phases_at(barrier);
    if ((int)p.n_missing < n_arrivals) {
        fail("more threads arrive than a barrier waits for");
    }
    p.n_missing -= n_arrivals;
    p.end_phase();
    got_on();
}

void make_for_phase(const phase_copy & c) {
    make(c.what);
    phases_at(c.barrier).n_bytes -= c.n_bytes;
    get_on(c.barrier, c.n_arrivals);
}

void make_or_keep(const phase_copy & c) {
    how.are_copies_late ? phase_copies.push_back(c) : make_for_phase(c);
}

// those that this barrier waits for
void make_phase_copies(uint32_t barrier) {
    const auto is_other = [=](const phase_copy & c) { return c.barrier != barrier; };
    const auto first = std::stable_partition(phase_copies.begin(), phase_copies.end(), is_other);
    std::for_each(first, phase_copies.end(), make_for_phase);
    phase_copies.erase(first, phase_copies.end());
}

copy checked_copy(uint32_t to, const void * from, int n_bytes, int alignment) {
    if (to % alignment != 0 || (uintptr_t)from % alignment != 0 || n_bytes % alignment != 0) {
        fail("a copy in the background that is not aligned");
    }
    return { shared_bytes_at(to, n_bytes), from, n_bytes };
}

}  // namespace

void run(const launch & grid, const std::function<void()> & kernel) {
    kernel_of_fibers = &kernel;
    gridDim = grid.blocks;
    shared_size = grid.shared_bytes;
    if (shared_size > MOST_SHARED || grid.threads.x * grid.threads.y % WARP != 0) {
        fail("a block that no GPU runs");
    }
    if (shared_size > 0) {
        memset(shared, UNWRITTEN, MOST_SHARED);
    }
    for (int z = 0; z < gridDim.z; ++z) {
        for (int y = 0; y < gridDim.y; ++y) {
            for (int x = 0; x < gridDim.x; ++x) {
                blockIdx = { x, y, z };
                run_block(grid.threads);
            }
        }
    }
}

void fail(const char * why) {
    fprintf(stderr, "block %d %d %d, thread %d %d: %s\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
            why);
    exit(2);
}

int lane() {
    return (int)(running % WARP);
}

void wait_until(const std::function<bool()> & is_true) {
    while (!is_true()) {
        let_others_run();
    }
    got_on();
}

const words * exchange(together what, const words & given) {
    warp & w = warps[running / WARP];
    const unsigned now = w.n_exchanges;
    if (w.n_waiting > 0 && w.what != what) {
        fail("threads of a warp do different things");
    }
    w.what = what;
    w.given[now % 2][lane()] = given;
    got_on();
    if (++w.n_waiting == WARP) {
        w.n_waiting = 0;
        ++w.n_exchanges;
    }
    while (w.n_exchanges == now) {
        let_others_run();
    }
    return w.given[now % 2];
}

void wait_at_barrier(int i, int n_threads) {
    barrier & b = barriers[i];
    const unsigned now = b.n_passed;
    if (++b.n_waiting == n_threads) {
        b.n_waiting = 0;
        ++b.n_passed;
    }
    got_on();
    wait_until([&] { return b.n_passed != now; });
}

char * shared_bytes_at(uint32_t address, int n_bytes) {
    if (n_bytes < 0 || (int64_t)address + n_bytes > shared_size) {
        fail("an address behind the shared memory of a block");
    }
    return shared + address;
}

uint32_t shared_address(const void * place) {
    const int64_t address = (const char *)place - shared;
    if (address < 0 || address > shared_size) {
        fail("an address that is none of the shared memory of a block");
    }
    return (uint32_t)address;
}

void make_phases(uint32_t barrier, int n_arrivals) {
    const phases made = { 0, (uint32_t)n_arrivals, (uint32_t)n_arrivals, 0, phases::MADE };
    memcpy(shared_bytes_at(barrier, sizeof(made)), &made, sizeof(made));
}

void announce_bytes(uint32_t barrier, int n_bytes) {
    phases_at(barrier).n_bytes += n_bytes;
    arrive(barrier);
}

void arrive(uint32_t barrier) {
    get_on(barrier, 1);
}

void copy_later(uint32_t to, const void * from, int n_bytes) {
    fibers[running].copies.push_back(checked_copy(to, from, n_bytes, n_bytes));
    if (!how.are_copies_late) {
        make(fibers[running].copies.back());
    }
}

void wait_for_copies() {
    std::vector<copy> & copies = fibers[running].copies;
    if (how.are_copies_late) {
        std::for_each(copies.begin(), copies.end(), make);
    }
    copies.clear();
}

void arrive_when_copied(uint32_t barrier) {
    std::vector<copy> & copies = fibers[running].copies;
    for (const copy & c : copies) {
        make_or_keep({ c, barrier, 0, 0 });
    }
    copies.clear();
    make_or_keep({ {}, barrier, 0, 1 });
}

void copy_for_phase(uint32_t to, const void * from, int n_bytes, uint32_t barrier) {
    make_or_keep({ checked_copy(to, from, n_bytes, 16), barrier, n_bytes, 0 });
}

void wait_for_phase(uint32_t barrier, int phase) {
    wait_until([=] {
        if (phases_at(barrier).phase == phase) {
            make_phase_copies(barrier);
        }
        return phases_at(barrier).phase != phase;
    });
}

}  // namespace cuda_on_cpu

void __syncthreads() {
    cuda_on_cpu::wait_at_barrier(0, (int)cuda_on_cpu::fibers.size());
}
