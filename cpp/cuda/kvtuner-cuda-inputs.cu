#include "kvtuner-cuda-inputs.cuh"

#include "ggml-cuda/common.cuh"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
bool kvtuner_cuda_set_inputs(ggml_backend_cuda_context &, const kvtuner_input *, size_t) {
    return false;
}

void kvtuner_cuda_forget_inputs(const ggml_backend_cuda_context &) {
}
#else
#    include "kvtuner-cuda-inputs-kernel.cuh"

#    include <algorithm>
#    include <cstdlib>
#    include <cstring>
#    include <mutex>
#    include <unordered_map>

using namespace kvtuner::cuda;

namespace {

static_assert(KVTUNER_INPUT_ALIGNMENT % INPUT_CHUNK == 0);

// Memory of the host that the device reads, in slots: one is written while inputs in others may still be on their way.
class input_slots {
public:
    input_slots() {
        const bool is_wanted = getenv("GGML_CUDA_NO_PINNED") == nullptr;
        if (!is_wanted || cudaMallocHost((void **)&memory, N_SLOTS * KVTUNER_MOST_INPUT_BYTES) != cudaSuccess) {
            (void)cudaGetLastError();
            memory = nullptr;
            return;
        }
        for (cudaEvent_t & event : read) {
            CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        }
    }

    input_slots(const input_slots &) = delete;
    input_slots & operator=(const input_slots &) = delete;

    ~input_slots() {
        if (memory) {
            for (cudaEvent_t event : read) {
                CUDA_CHECK(cudaEventSynchronize(event));
                CUDA_CHECK(cudaEventDestroy(event));
            }
            CUDA_CHECK(cudaFreeHost(memory));
        }
    }

    // one that has been read; null where there is no memory
    char * free_slot() {
        if (!memory) {
            return nullptr;
        }
        CUDA_CHECK(cudaEventSynchronize(read[at]));
        return memory + at * KVTUNER_MOST_INPUT_BYTES;
    }

    // the free one is read by what the stream has now
    void take(cudaStream_t stream) {
        CUDA_CHECK(cudaEventRecord(read[at], stream));
        at = (at + 1) % N_SLOTS;
    }

private:
    static constexpr int N_SLOTS = 4;

    char * memory = nullptr;
    cudaEvent_t read[N_SLOTS] = {};
    int at = 0;
};

// Those of all contexts. A program may end without freeing its contexts, and then CUDA is gone before static objects
// are.
struct all_slots {
    std::mutex guard;
    std::unordered_map<const ggml_backend_cuda_context *, input_slots> by_context;
};

static all_slots & all() {
    static all_slots * const slots = new all_slots;
    return *slots;
}

// which only the thread of the context uses
static input_slots & slots_of(const ggml_backend_cuda_context & ctx) {
    const std::lock_guard<std::mutex> lock(all().guard);
    return all().by_context[&ctx];
}

static void launch(const staged_inputs & inputs, int n, cudaStream_t stream) {
    uint32_t most = 0;
    for (int i = 0; i < n; ++i) {
        most = std::max(most, inputs.of[i].bytes);
    }
    const int n_blocks = std::clamp((int)(most / (INPUT_THREADS * INPUT_CHUNK)), 1, MOST_INPUT_BLOCKS);
    const ggml_cuda_kernel_launch_params params(dim3(n_blocks, n), dim3(INPUT_THREADS), (size_t)0, stream);
    ggml_cuda_kernel_launch(bring_inputs, params, inputs);
}

}  // namespace

bool kvtuner_cuda_set_inputs(ggml_backend_cuda_context & ctx, const kvtuner_input * inputs, size_t n) {
    ggml_cuda_set_device(ctx.device);
    input_slots & slots = slots_of(ctx);
    char * slot = slots.free_slot();
    if (!slot) {
        return false;
    }
    staged_inputs staged = { slot, {} };
    size_t at = 0;
    for (size_t i = 0; i < n; ++i) {
        const int of_launch = (int)(i % MOST_INPUTS);
        const size_t n_bytes = ggml_nbytes(inputs[i].to);
        memcpy(slot + at, inputs[i].from, n_bytes);
        staged.of[of_launch] = { (char *)inputs[i].to->data, (uint32_t)at, (uint32_t)n_bytes };
        at += GGML_PAD(n_bytes, KVTUNER_INPUT_ALIGNMENT);
        if (of_launch == MOST_INPUTS - 1 || i == n - 1) {
            launch(staged, of_launch + 1, ctx.stream());
        }
    }
    slots.take(ctx.stream());
    return true;
}

void kvtuner_cuda_forget_inputs(const ggml_backend_cuda_context & ctx) {
    const std::lock_guard<std::mutex> lock(all().guard);
    all().by_context.erase(&ctx);
}
#endif
