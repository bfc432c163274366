// The comparison of plans in llama-bench.
#pragma once

#include "kvtuner-arg.h"
#include "kvtuner-cache-only.h"
#include "kvtuner-formats.h"

#include <sstream>
#include <utility>

// the type of ours that is called so, or GGML_TYPE_COUNT
inline ggml_type kvtuner_own_type(const std::string & name) {
    for (ggml_type type : KVTUNER_CACHE_TYPES) {
        if (kvtuner_is_cache_only(type) && name == ggml_type_name(type)) {
            return type;
        }
    }
    return GGML_TYPE_COUNT;
}

// The kv_configs that a tool is to compare: "auto" where none is named, "none" alone with uniform types. Ends the tool
// where one is of no use.
inline std::vector<std::string> kvtuner_compared(const std::vector<std::string> & kv_configs, bool types_given) {
    try {
        for (const std::string & kv_config : kv_configs) {
            kvtuner_checked(kv_config, types_given);
        }
    } catch (const std::invalid_argument & err) {
        fprintf(stderr, "error: %s\n", err.what());
        exit(1);
    }
    return types_given          ? std::vector<std::string>{ "none" }
           : kv_configs.empty() ? std::vector<std::string>{ "auto" }
                                : kv_configs;
}

// Adds the kv_configs of a list with commas. False without a list (null).
inline bool kvtuner_add_configs(std::vector<std::string> & kv_configs, const char * list) {
    std::istringstream stream(list ? list : "");
    for (std::string kv_config; std::getline(stream, kv_config, ',');) {
        kv_configs.push_back(kv_config);
    }
    return list != nullptr;
}

// all runs for each of the kv_configs, which need a load each
template <typename RUN>
std::vector<RUN> kvtuner_runs(const std::vector<RUN> & runs, const std::vector<std::string> & kv_configs) {
    std::vector<RUN> all;
    for (const std::string & kv_config : kv_configs) {
        for (const RUN & run : runs) {
            all.push_back(run);
            all.back().kv_config = kv_config;
        }
    }
    return all;
}

// Whether this is the kv_config of the call before: a cache that one has filled is of no use to another.
inline bool kvtuner_is_as_before(const std::string & kv_config) {
    static std::string before;
    return std::exchange(before, kv_config) == kv_config;
}

// what a run reports of its cache
struct kvtuner_bench_cache {
    std::string kv_config, bits;

    kvtuner_bench_cache() = default;
    kvtuner_bench_cache(const std::string & kv_config, const llama_context * ctx)
        : kv_config(kvtuner_has_plan(ctx) ? kv_config : "none"), bits(std::to_string(kvtuner_bits_per_value(ctx))) {
    }
};

// the columns of a table that tell caches apart; none where all are those without a plan
inline std::vector<std::string> kvtuner_bench_columns(const std::vector<std::string> & kv_configs,
                                                      const std::vector<std::string> & models) {
    const auto has_plan = [](const std::string & model) { return kvtuner_file_has_plan(model.c_str()); };
    const bool is_needed =
            kv_configs != std::vector<std::string>{ "auto" } || std::any_of(models.begin(), models.end(), has_plan);
    return is_needed ? std::vector<std::string>{ "kv_config", "kv_bits" } : std::vector<std::string>();
}
