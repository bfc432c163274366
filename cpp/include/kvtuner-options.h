// Our options of the tools that share upstream's parser.
#pragma once

#include "kvtuner-arg.h"

#include "arg.h"
#include "common.h"

// `add` takes a common_arg
template <typename ADD>
void kvtuner_add_options(ADD add, const common_params & params) {
    add(common_arg({ "--kv-config" }, "auto|none|PATH",
                   "plan of K and V cache data types per layer (default: auto)\n"
                   "auto: the plan in the model's metadata, if it has one and neither -ctk nor -ctv is given\n"
                   "none: no plan\n"
                   "PATH: a plan as JSON",
                   [](common_params & params, const std::string & value) {
                       params.kvtuner.kv_config = kvtuner_checked(value);
                   })
                .set_env("LLAMA_ARG_KV_CONFIG"));
    add(common_arg({ "--kv-center" }, { "--no-kv-center" },
                   std::string("whether to center keys where the plan has vectors for it (default: ") +
                           (params.kvtuner.use_centers ? "enabled)" : "disabled)"),
                   [](common_params & params, bool value) {
                       params.kvtuner.use_centers = params.speculative.draft.kvtuner.use_centers = value;
                   })
                .set_env("LLAMA_ARG_KV_CENTER"));
    add(common_arg(
                { "--kv-ends" }, { "--no-kv-ends" },
                std::string("whether to read the first and last positions exactly where the plan says so (default: ") +
                        (params.kvtuner.use_ends ? "enabled)" : "disabled)"),
                [](common_params & params, bool value) {
                    params.kvtuner.use_ends = params.speculative.draft.kvtuner.use_ends = value;
                })
                .set_env("LLAMA_ARG_KV_ENDS"));
    add(common_arg({ "--kv-config-draft" }, "auto|none|PATH",
                   "plan of K and V cache data types per layer for the draft model, as --kv-config (default: auto)",
                   [](common_params & params, const std::string & value) {
                       params.speculative.draft.kvtuner.kv_config = kvtuner_checked(value);
                   })
                .set_env("LLAMA_ARG_KV_CONFIG_DRAFT"));
}
