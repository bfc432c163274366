// Inputs of a graph on a made-up device that does all its work as late as it may: each round reads what its inputs were
// when it was asked for, and waits no more often than it must.

#include "kvtuner-inputs.h"

#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

namespace {

constexpr int64_t N_VALUES = 64, N_TOKENS = 8, N_ROUNDS = 6;
constexpr int64_t N_LARGE = KVTUNER_MOST_INPUT_BYTES / sizeof(float);  // which has room only by itself

// what the device can do
struct abilities {
    bool takes_together, has_memory, has_pinned, has_events;  // the second: for inputs that it takes together
};

abilities can;
int n_waits = 0, n_together = 0, n_copies = 0;
std::vector<std::function<void()>> work;
ggml_backend_t cpu = nullptr;

void do_work() {
    for (const auto & step : work) {
        step();
    }
    work.clear();
}

// memory of the device, and memory of the host that it copies from

const char * device_memory_name(ggml_backend_buffer_type_t) {
    return "made-up memory";
}

const char * pinned_memory_name(ggml_backend_buffer_type_t) {
    return "pinned memory";
}

ggml_backend_buffer_t alloc(ggml_backend_buffer_type_t type, size_t n_bytes) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), n_bytes);
    buffer->buft = type;
    return buffer;
}

size_t alignment(ggml_backend_buffer_type_t) {
    return 64;
}

bool is_host(ggml_backend_buffer_type_t) {
    return true;
}

ggml_backend_buffer_type device_memory, pinned_memory;

// the device

const char * name(ggml_backend_dev_t) {
    return "GPU0";
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t) {
    return &device_memory;
}

ggml_backend_buffer_type_t host_buffer_type(ggml_backend_dev_t) {
    return can.has_pinned ? &pinned_memory : nullptr;
}

// an event: how many steps of the work that there is were asked for before it
std::vector<size_t> recorded;
bool was_computing = false;  // whether all events were waited for only once the device had something to compute

ggml_backend_event_t new_event(ggml_backend_dev_t device) {
    recorded.push_back(0);
    return can.has_events ? new ggml_backend_event{ device, nullptr } : nullptr;
}

void free_event(ggml_backend_dev_t, ggml_backend_event_t event) {
    delete event;
}

void wait_for_event(ggml_backend_dev_t, ggml_backend_event_t) {
    was_computing = was_computing && work.size() > recorded.back();
    for (size_t i = 0; i < recorded.back(); ++i) {
        work[i]();
    }
    work.erase(work.begin(), work.begin() + (ptrdiff_t)recorded.back());
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor * node) {
    return node->op != GGML_OP_GET_ROWS;
}

bool supports_memory(ggml_backend_dev_t, ggml_backend_buffer_type_t memory) {
    return memory == &device_memory;
}

ggml_backend_device device;

// its back end

const char * backend_name(ggml_backend_t) {
    return "made-up";
}

void set_tensor(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t n_bytes) {
    ++n_copies;
    work.push_back([=] { memcpy((char *)tensor->data + offset, data, n_bytes); });
}

void get_tensor(ggml_backend_t, const ggml_tensor * tensor, void * data, size_t offset, size_t n_bytes) {
    work.push_back([=] { memcpy(data, (const char *)tensor->data + offset, n_bytes); });
}

void synchronize(ggml_backend_t) {
    ++n_waits;
    do_work();
}

ggml_status compute(ggml_backend_t, ggml_cgraph * graph) {
    work.push_back([=] { ggml_backend_graph_compute(cpu, graph); });
    return GGML_STATUS_SUCCESS;
}

void record(ggml_backend_t, ggml_backend_event_t) {
    recorded.back() = work.size();
}

bool set_inputs(ggml_backend_t, const kvtuner_input * inputs, size_t n) {
    for (size_t i = 0; i < n && can.has_memory; ++i) {
        const char * from = (const char *)inputs[i].from;
        const std::vector<char> kept(from, from + ggml_nbytes(inputs[i].to));
        work.push_back([to = inputs[i].to, kept] { memcpy(to->data, kept.data(), kept.size()); });
    }
    n_together += (int)n;
    return can.has_memory;
}

void * proc_address(ggml_backend_reg_t, const char * wanted) {
    return can.takes_together && strcmp(wanted, KVTUNER_SET_INPUTS) == 0 ? (void *)set_inputs : nullptr;
}

ggml_backend_reg registry;
ggml_backend made_up;

void make_device() {
    for (ggml_backend_buffer_type * memory : { &device_memory, &pinned_memory }) {
        memory->iface.alloc_buffer = alloc;
        memory->iface.get_alignment = alignment;
        memory->device = &device;
    }
    device_memory.iface.get_name = device_memory_name;
    pinned_memory.iface.get_name = pinned_memory_name;
    pinned_memory.iface.is_host = is_host;
    registry.iface.get_proc_address = proc_address;
    device.reg = &registry;
    device.iface.get_name = name;
    device.iface.get_type = device_type;
    device.iface.get_buffer_type = buffer_type;
    device.iface.get_host_buffer_type = host_buffer_type;
    device.iface.event_new = new_event;
    device.iface.event_free = free_event;
    device.iface.event_synchronize = wait_for_event;
    device.iface.supports_op = supports_op;
    device.iface.supports_buft = supports_memory;
    made_up.device = &device;
    made_up.iface.get_name = backend_name;
    made_up.iface.set_tensor_async = set_tensor;
    made_up.iface.get_tensor_async = get_tensor;
    made_up.iface.synchronize = synchronize;
    made_up.iface.graph_compute = compute;
    made_up.iface.event_record = record;
}

// a tensor of floats that a graph takes as it is
ggml_tensor * weight(ggml_context * ctx, int64_t n_rows, ggml_backend_buffer_type_t type,
                     ggml_backend_buffer_ptr & owner, float first) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_VALUES, n_rows);
    owner.reset(ggml_backend_buft_alloc_buffer(type, ggml_nbytes(t)));
    ggml_backend_buffer_set_usage(owner.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_alloc(owner.get(), t, ggml_backend_buffer_get_base(owner.get()));
    for (int64_t i = 0; i < n_rows * N_VALUES; ++i) {
        ((float *)t->data)[i] = first + (float)i;
    }
    return t;
}

// rows of a table, which the CPU looks up, times a weight and an input, or another input times that weight, which is
// not chosen; halves of these rows, times another weight; and a large input, twice
struct problem {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr of_table, of_weight, of_half;
    ggml_tensor *ids, *factors, *large, *product, *halves, *twice;
    ggml_cgraph * graph;

    explicit problem(bool has_large) : ctx(ggml_init({ 256 * 1024, nullptr, /*no_alloc =*/true })), large(nullptr) {
        ggml_context * c = ctx.get();
        ggml_tensor * table = weight(c, 32, ggml_backend_cpu_buffer_type(), of_table, 0);
        ggml_tensor * w = weight(c, 1, &device_memory, of_weight, 1);
        ggml_tensor * half = ggml_view_1d(c, weight(c, 1, &device_memory, of_half, 1), N_VALUES / 2, 0);
        ids = ggml_new_tensor_1d(c, GGML_TYPE_I32, N_TOKENS);
        factors = ggml_new_tensor_2d(c, GGML_TYPE_F32, N_VALUES, N_TOKENS);
        ggml_tensor * rows = ggml_get_rows(c, table, ids);
        product = ggml_mul(c, ggml_mul(c, rows, w), factors);
        halves = ggml_mul(c, ggml_view_2d(c, rows, N_VALUES / 2, N_TOKENS, rows->nb[1], 0), half);
        ggml_set_input(ids);
        ggml_set_input(factors);
        ggml_set_output(product);
        ggml_tensor * unread = ggml_new_tensor_2d(c, GGML_TYPE_F32, N_VALUES, N_TOKENS);
        ggml_set_input(unread);
        ggml_tensor * choices[] = { product, ggml_mul(c, unread, w) };
        graph = ggml_new_graph(c);
        ggml_build_forward_select(graph, choices, 2, 0);
        ggml_set_output(halves);
        ggml_build_forward_expand(graph, halves);
        if (has_large) {
            large = ggml_new_tensor_1d(c, GGML_TYPE_F32, N_LARGE);
            ggml_set_input(large);
            twice = ggml_scale(c, large, 2);
            ggml_set_output(twice);
            ggml_build_forward_expand(graph, twice);
        }
    }

    static int32_t id(int round, int i) {
        return (round * 5 + i * 3) % 32;
    }

    void set(int round) {
        for (int i = 0; i < N_TOKENS; ++i) {
            ((int32_t *)ids->data)[i] = id(round, i);
        }
        for (int64_t i = 0; i < ggml_nelements(factors); ++i) {
            ((float *)factors->data)[i] = (float)((round + 1) * (i % 7 + 1));
        }
        for (int64_t i = 0; large && i < N_LARGE; ++i) {
            ((float *)large->data)[i] = (float)(round + i % 11);
        }
    }

    static float row(int round, int64_t token, int64_t k) {
        return (float)(id(round, (int)token) * N_VALUES + k);
    }

    struct results {
        std::vector<float> products, halves, doubles;
    };

    results room() const {
        return { std::vector<float>(ggml_nelements(product)), std::vector<float>(ggml_nelements(halves)),
                 std::vector<float>(large ? N_LARGE : 0) };
    }

    void get(results & to) const {
        ggml_backend_tensor_get_async(&made_up, product, to.products.data(), 0, ggml_nbytes(product));
        ggml_backend_tensor_get_async(&made_up, halves, to.halves.data(), 0, ggml_nbytes(halves));
        if (large) {
            ggml_backend_tensor_get_async(&made_up, twice, to.doubles.data(), 0, ggml_nbytes(twice));
        }
    }

    results expected(int round) const {
        results r = room();
        for (int64_t i = 0; i < N_TOKENS * N_VALUES; ++i) {
            const int64_t token = i / N_VALUES, k = i % N_VALUES;
            r.products[i] = row(round, token, k) * (float)(k + 1) * (float)((round + 1) * (i % 7 + 1));
            if (k < N_VALUES / 2) {
                r.halves[token * N_VALUES / 2 + k] = row(round, token, k) * (float)(k + 1);
            }
        }
        for (int64_t i = 0; i < (int64_t)r.doubles.size(); ++i) {
            r.doubles[i] = 2 * (float)(round + i % 11);
        }
        return r;
    }
};

int failures = 0;

void expect(bool is_right, const char * what, bool has_large) {
    if (!is_right) {
        printf("together %d, memory %d, pinned %d, events %d, large %d: %s\n", can.takes_together, can.has_memory,
               can.has_pinned, can.has_events, has_large, what);
        ++failures;
    }
}

// How inputs went: the CPU's rows, their halves and factors together, a large one by itself if it is in pinned memory.
// A device that takes none together may do its work in any order, and is left to upstream.
void expect_ways(bool has_large) {
    constexpr int N_SMALL = 3;
    const int n_small = can.has_memory ? 0 : N_SMALL, n_large = has_large && can.has_pinned ? 1 : 0;
    const int n_copied = can.takes_together ? n_small + n_large : 0;
    expect(n_together == (can.takes_together ? N_SMALL * N_ROUNDS : 0), "other inputs went together", has_large);
    expect(n_copies == n_copied * N_ROUNDS, "other inputs were copied", has_large);
    if (can.takes_together && (!has_large || can.has_pinned)) {
        expect(n_waits == (n_copied > 0 && !can.has_events ? N_ROUNDS : 0), "it waited for other work", has_large);
        expect(recorded.size() == (n_copied > 0 ? N_ROUNDS : 0), "it waited for other copies", has_large);
        expect(was_computing, "it waited before the device had something to compute", has_large);
    }
}

// all rounds are asked for before any result is waited for
void test(const abilities & device_can, bool has_large) {
    can = device_can;
    problem p(has_large);
    ggml_backend_t backends[] = { &made_up, cpu };
    ggml_backend_buffer_type_t memories[] = { &device_memory,
                                              can.has_pinned ? &pinned_memory : ggml_backend_cpu_buffer_type() };
    ggml_backend_sched_ptr sched(ggml_backend_sched_new(backends, memories, 2, 64, false, false));
    expect(ggml_backend_sched_alloc_graph(sched.get(), p.graph), "not allocated", has_large);
    expect(ggml_backend_sched_get_n_splits(sched.get()) == 2, "not two splits", has_large);
    std::vector<problem::results> results(N_ROUNDS, p.room());
    n_waits = n_together = n_copies = 0;
    was_computing = true;
    recorded.clear();
    for (int i = 0; i < N_ROUNDS; ++i) {
        p.set(i);
        ggml_backend_sched_graph_compute_async(sched.get(), p.graph);
        p.set(i + 17);
        p.get(results[i]);
    }
    do_work();
    for (int i = 0; i < N_ROUNDS; ++i) {
        const problem::results expected = p.expected(i);
        const bool is_right = results[i].products == expected.products && results[i].halves == expected.halves &&
                              results[i].doubles == expected.doubles;
        expect(is_right, "a round has inputs of another", has_large);
    }
    expect_ways(has_large);
}

}  // namespace

int main() {
    make_device();
    cpu = ggml_backend_cpu_init();
    for (const bool has_large : { false, true }) {
        for (const bool has_events : { false, true }) {
            test({ true, true, true, has_events }, has_large);
            test({ true, true, false, has_events }, has_large);
            test({ true, false, true, has_events }, has_large);
            test({ false, false, true, has_events }, has_large);
            test({ false, false, false, has_events }, has_large);
        }
    }
    ggml_backend_free(cpu);
    printf("%d failures\n", failures);
    return failures > 0;
}
