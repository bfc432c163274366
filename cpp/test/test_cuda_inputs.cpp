// The kernel of cpp/cuda that brings inputs to a device, on the CPU: each byte of each input comes to its place, and no
// other changes.

#include "kvtuner-cuda-inputs-kernel.cuh"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

using namespace kvtuner::cuda;

namespace {

using bytes = std::vector<char>;

constexpr char UNTOUCHED = 0x55;
constexpr int AROUND = 64;  // bytes before and behind an input that stay as they are

int failures = 0;

struct problem {
    std::vector<uint32_t> sizes;
    int n_blocks, shift;  // the latter: bytes from an aligned place to where inputs go
};

void test(const problem & p, std::mt19937 & random) {
    staged_inputs args = {};
    size_t n_staged = 0;
    std::vector<bytes> to;
    for (const uint32_t size : p.sizes) {
        to.emplace_back(size + 2 * AROUND, UNTOUCHED);
    }
    for (size_t i = 0; i < p.sizes.size(); ++i) {
        char * place = (char *)(((uintptr_t)to[i].data() + INPUT_CHUNK) / INPUT_CHUNK * INPUT_CHUNK) + p.shift;
        args.of[i] = { place, (uint32_t)n_staged, p.sizes[i] };
        n_staged += (p.sizes[i] + INPUT_CHUNK - 1) / INPUT_CHUNK * INPUT_CHUNK;
    }
    std::vector<uint4> staged(n_staged / INPUT_CHUNK + 1);
    char * from = (char *)staged.data();
    std::generate(from, from + n_staged, [&] { return (char)random(); });
    args.from = from;
    std::vector<bytes> expected = to;
    for (size_t i = 0; i < p.sizes.size(); ++i) {
        std::copy_n(from + args.of[i].at, p.sizes[i], expected[i].begin() + (args.of[i].to - to[i].data()));
    }
    const dim3 grid(p.n_blocks, (int)p.sizes.size());
    cuda_on_cpu::run({ grid, dim3(INPUT_THREADS), 0 }, [&] { bring_inputs(args); });
    if (to != expected) {
        printf("%zu inputs, %d blocks, shifted by %d: not what was staged\n", p.sizes.size(), p.n_blocks, p.shift);
        ++failures;
    }
}

}  // namespace

int main() {
    std::mt19937 random(1);
    std::vector<uint32_t> few(MOST_INPUTS);
    std::iota(few.begin(), few.end(), 1);
    const std::vector<uint32_t> usual = { 4, 8, 16384, 320, 644, 8, 1024 };
    const std::vector<uint32_t> large = { 65536, INPUT_THREADS * INPUT_CHUNK, INPUT_THREADS * INPUT_CHUNK + 1, 98321 };
    int n = 0;
    for (const auto & sizes : { few, usual, large }) {
        for (const int n_blocks : { 1, 3, MOST_INPUT_BLOCKS }) {
            for (const int shift : { 0, 1, 4, 15 }) {
                test({ sizes, n_blocks, shift }, random);
                ++n;
            }
        }
    }
    printf("%d sets of inputs, %d failures\n", n, failures);
    return failures > 0;
}
