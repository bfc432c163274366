// What is made of the masks of a graph, once for all layers that have the same few.
#pragma once

#include "ggml-cuda/common.cuh"

#include <functional>
#include <memory>
#include <vector>

namespace kvtuner::cuda {

// Memory of the pool, which nothing else may have of it then but what is given back before.
class kept_masks {
public:
    enum class what { JOINED, MARKS };

    explicit kept_masks(ggml_backend_cuda_context & ctx) : ctx(ctx) {
    }

    ~kept_masks() {
        while (!kept.empty()) {
            kept.pop_back();
        }
    }

    // of the mask of a cache and that of exact rows, or null; made if no node before had the same
    char * of(const what made, const ggml_tensor * cache, const ggml_tensor * exact, const size_t n_bytes,
              const std::function<void(char *)> & make) {
        for (const one & k : kept) {
            if (k.made == made && k.cache == cache && k.exact == exact) {
                return k.memory->ptr;
            }
        }
        kept.push_back({ made, cache, exact, std::make_unique<ggml_cuda_pool_alloc<char>>(ctx.pool(), n_bytes) });
        make(kept.back().memory->ptr);
        return kept.back().memory->ptr;
    }

private:
    struct one {
        what made;
        const ggml_tensor *cache, *exact;
        std::unique_ptr<ggml_cuda_pool_alloc<char>> memory;
    };

    ggml_backend_cuda_context & ctx;
    std::vector<one> kept;
};

}  // namespace kvtuner::cuda
