// A library that CUDA loads into a program (CUDA_INJECTION64_PATH): writes when each kernel began and ended, those
// inside graphs, too, to the file KVTUNER_TRACE, a line each: begin, end in nanoseconds, name.

#include <cstdio>
#include <cstdlib>
#include <cupti.h>
#include <cxxabi.h>
#include <string>
#include <vector>

namespace {

constexpr size_t BUFFER_BYTES = 8 << 20;

struct kernel {
    uint64_t begin, end;
    std::string name;
};

std::vector<kernel> kernels;

void CUPTIAPI give_buffer(uint8_t ** buffer, size_t * size, size_t * n_records) {
    *buffer = (uint8_t *)aligned_alloc(8, BUFFER_BYTES);
    *size = BUFFER_BYTES;
    *n_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t * buffer, size_t, size_t n_valid) {
    CUpti_Activity * record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, n_valid, &record) == CUPTI_SUCCESS) {
        const auto * found = (const CUpti_ActivityKernel10 *)record;
        kernels.push_back({ found->start, found->end, found->name ? found->name : "?" });
    }
    free(buffer);
}

void write_kernels() {
    cuptiActivityFlushAll(1);
    FILE * file = fopen(getenv("KVTUNER_TRACE"), "w");
    for (const kernel & k : kernels) {
        int status = 0;
        char * name = abi::__cxa_demangle(k.name.c_str(), nullptr, nullptr, &status);
        fprintf(file, "%llu %llu %s\n", (unsigned long long)k.begin, (unsigned long long)k.end,
                name ? name : k.name.c_str());
        free(name);
    }
    fclose(file);
}

}  // namespace

extern "C" int InitializeInjection() {
    cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    atexit(write_kernels);
    return 1;
}
