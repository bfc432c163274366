// What a context is put through: scripts that end in logits, the same for the context under test and its reference.
#pragma once

#include "llama-cpp.h"

#include <string>
#include <vector>

// The logits of one part of a script, a row of n_vocab values per token.
struct run_stage {
    std::string name;
    std::vector<float> logits;
};

using run_stages = std::vector<run_stage>;

enum class run_script {
    one_sequence,     // prefill, decode, context shift, self-extend
    unified_streams,  // two sequences in one stream: copy, decode together, keep
    own_streams,      // two sequences in a stream each: copy, decode together, remove
    draft,            // one sequence through the model's own draft layers
    no_memory,        // one batch
};

// Normalized mean squared error: mse(expected, found) / mse(expected, 0).
double nmse(const std::vector<float> & expected, const std::vector<float> & found);

const char * script_name(run_script script);

// Parameters of a context for a script, with the default types.
llama_context_params script_params(run_script script);

// Throws std::runtime_error where a call fails; what a memory cannot do is left out.
run_stages run(llama_context & ctx, run_script script);

// Save after a prefill, whole and one sequence, and load into fresh contexts; throws unless the state is the same and
// the logits that follow are, bit for bit where no sliding window gives cells another order.
void check_restore(llama_model & model, const llama_context_params & params);
