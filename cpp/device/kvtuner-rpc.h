// Cache types of ours on devices of other machines: a server that knows them says so in the greeting, in a byte that
// others leave at 0.
#pragma once

#include "kvtuner-cache-only.h"

#include <atomic>

// of q2_nl and q3_nl as kvtuner-blocks.h has them and kvtuner-quantize.h finds them: a build that gives them other
// numbers or scales greets otherwise
constexpr uint8_t KVTUNER_RPC_CACHE_TYPES = GGML_TYPE_Q2_NL + 1;

inline std::atomic<bool> kvtuner_rpc_all_servers_know{ true };

inline void kvtuner_rpc_greeted(uint8_t cache_types) {
    if (cache_types != KVTUNER_RPC_CACHE_TYPES) {
        kvtuner_rpc_all_servers_know = false;
    }
}

inline bool kvtuner_rpc_supports_op(const ggml_tensor * op) {
    return kvtuner_rpc_all_servers_know || !kvtuner_has_cache_only_type(op);
}
