#include "arch_runs.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>

static constexpr uint32_t N_CTX = 256;
static constexpr uint32_t N_UBATCH = 64;
static constexpr int32_t N_PREFILL = 96;  // beyond a micro-batch and the models' sliding window
static constexpr int32_t N_DECODE = 6;
static constexpr llama_pos SHIFT_FROM = 4;
static constexpr llama_pos SHIFT_BY = 20;
static constexpr int EXTEND_BY = 2;
static constexpr int32_t MAX_TOKEN = 128;
static constexpr uint32_t SEED = 1;
static constexpr double MAX_ORDER_NMSE = 1e-4;

namespace {

struct batch_deleter {
    void operator()(llama_batch_ext * batch) const {
        llama_batch_ext_free(batch);
    }
};

// a context with the tokens that it is fed and the logits that it gave
class session {
public:
    explicit session(llama_context & ctx)
        : ctx(ctx),
          n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(&ctx)))),
          batch(llama_batch_ext_init(&ctx)) {
        if (ctx.get_cparams().ctx_type == LLAMA_CONTEXT_TYPE_MTP) {
            hidden.resize(ctx.get_model().hparams.n_embd_out());
        }
    }

    llama_memory_t memory() {
        return llama_get_memory(&ctx);
    }

    void begin(const std::string & name) {
        stages.push_back({ name, {} });
    }

    // a draft layer also takes the hidden state that the model would hand it
    void add(llama_seq_id seq, llama_pos pos) {
        const llama_token token = (llama_token)(random() % (uint32_t)std::min(n_vocab, MAX_TOKEN));
        const int32_t i = llama_batch_ext_add_token(batch.get(), seq, token);
        if (!hidden.empty()) {
            std::generate(hidden.begin(), hidden.end(), [&] { return std::normal_distribution<float>()(random); });
            llama_batch_ext_set_embd_token(batch.get(), i, { hidden.data(), 1, hidden.size() });
        }
        llama_batch_ext_set_pos(batch.get(), i, &pos);
        llama_batch_ext_set_output_logits(batch.get(), i, true);
        n_tokens = i + 1;
    }

    void evaluate() {
        const bool encodes = llama_model_has_encoder(llama_get_model(&ctx)) && !is_encoded;
        if (encodes && llama_process(&ctx, LLAMA_PROCESS_TYPE_ENCODE, batch.get()) != 0) {
            throw std::runtime_error("encoding failed in " + stages.back().name);
        }
        is_encoded = true;
        if (llama_process(&ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            throw std::runtime_error("decoding failed in " + stages.back().name);
        }
        for (int32_t i = 0; i < n_tokens; ++i) {
            const float * row = llama_get_logits_ith(&ctx, i);
            std::vector<float> & logits = stages.back().logits;
            logits.insert(logits.end(), row, row + n_vocab);
        }
        llama_batch_ext_clear(batch.get());
    }

    void prefill(int32_t n_tokens) {
        begin("prefill");
        for (int32_t i = 0; i < n_tokens; ++i) {
            add(0, i);
        }
        evaluate();
    }

    // token by token, each sequence at its end
    void decode(const std::string & name, const std::vector<llama_seq_id> & seqs) {
        begin(name);
        for (int32_t i = 0; i < N_DECODE; ++i) {
            for (llama_seq_id seq : seqs) {
                add(seq, llama_memory_seq_pos_max(memory(), seq) + 1);
            }
            evaluate();
        }
    }

    run_stages stages;

private:
    llama_context & ctx;
    const int32_t n_vocab;
    std::unique_ptr<llama_batch_ext, batch_deleter> batch;
    int32_t n_tokens = 0;
    std::vector<float> hidden;  // of one token
    std::mt19937 random{ SEED };
    bool is_encoded = false;
};

}  // namespace

double nmse(const std::vector<float> & expected, const std::vector<float> & found) {
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double e = (double)expected[i] - found[i];
        error += e * e;
        norm += (double)expected[i] * expected[i];
    }
    return error / norm;
}

const char * script_name(run_script script) {
    switch (script) {
        case run_script::one_sequence:
            return "one sequence";
        case run_script::unified_streams:
            return "unified streams";
        case run_script::own_streams:
            return "own streams";
        case run_script::draft:
            return "draft";
        case run_script::no_memory:
            return "no memory";
    }
    return "?";
}

llama_context_params script_params(run_script script) {
    const bool has_two = script == run_script::unified_streams || script == run_script::own_streams;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = has_two && script == run_script::own_streams ? 2 * N_CTX : N_CTX;
    params.n_batch = N_CTX;
    params.n_ubatch = script == run_script::no_memory ? N_CTX : N_UBATCH;
    params.n_seq_max = has_two ? 2 : 1;
    params.kv_unified = script != run_script::own_streams;
    params.ctx_type = script == run_script::draft ? LLAMA_CONTEXT_TYPE_MTP : LLAMA_CONTEXT_TYPE_DEFAULT;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return params;
}

static void run_one_sequence(session & s) {
    s.prefill(N_PREFILL);
    s.decode("decode", { 0 });
    if (!llama_memory_can_shift(s.memory()) || !llama_memory_seq_rm(s.memory(), 0, SHIFT_FROM, SHIFT_FROM + SHIFT_BY)) {
        return;
    }
    llama_memory_seq_add(s.memory(), 0, SHIFT_FROM + SHIFT_BY, -1, -SHIFT_BY);
    s.decode("context shift", { 0 });
    llama_memory_seq_div(s.memory(), 0, 0, -1, EXTEND_BY);
    s.decode("self-extend", { 0 });
}

static void run_two_sequences(session & s, run_script script) {
    s.prefill(N_PREFILL);
    llama_memory_seq_cp(s.memory(), 0, 1, -1, -1);
    s.decode("after a copy", { 0, 1 });
    if (script == run_script::unified_streams) {
        llama_memory_seq_keep(s.memory(), 1);
        s.decode("after a keep", { 1 });
    } else {  // a stream of its own is not touched by what is kept in another
        llama_memory_seq_rm(s.memory(), 0, -1, -1);
        s.decode("after a removal", { 1 });
    }
}

run_stages run(llama_context & ctx, run_script script) {
    session s(ctx);
    switch (script) {
        case run_script::one_sequence:
        case run_script::draft:
            run_one_sequence(s);
            break;
        case run_script::no_memory:
            s.prefill(N_PREFILL);
            break;
        default:
            run_two_sequences(s, script);
    }
    return s.stages;
}

static std::vector<uint8_t> save(llama_context & ctx, bool whole) {
    std::vector<uint8_t> state(whole ? llama_state_get_size(&ctx) : llama_state_seq_get_size(&ctx, 0));
    const size_t n = whole ? llama_state_get_data(&ctx, state.data(), state.size())
                           : llama_state_seq_get_data(&ctx, state.data(), state.size(), 0);
    if (n != state.size()) {
        throw std::runtime_error("a state was saved in part");
    }
    return state;
}

static void load(llama_context & ctx, const std::vector<uint8_t> & state, bool whole) {
    const size_t n = whole ? llama_state_set_data(&ctx, state.data(), state.size())
                           : llama_state_seq_set_data(&ctx, state.data(), state.size(), 0);
    if (n != state.size()) {
        throw std::runtime_error("a state was not loaded");
    }
}

// the cells of a sliding window may be used again in another order, and sums in f16 are then others
static bool is_same(const llama_model & model, const std::vector<float> & a, const std::vector<float> & b) {
    if (model.hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    }
    return nmse(a, b) <= MAX_ORDER_NMSE;
}

void check_restore(llama_model & model, const llama_context_params & params) {
    for (bool whole : { true, false }) {
        const std::string part = whole ? "the context" : "a sequence";
        llama_context_ptr saved(llama_init_from_model(&model, params));
        llama_context_ptr loaded(llama_init_from_model(&model, params));
        session first(*saved);
        first.prefill(N_PREFILL);
        const std::vector<uint8_t> state = save(*saved, whole);
        load(*loaded, state, whole);
        if (save(*loaded, whole) != state) {
            throw std::runtime_error("the state of " + part + " is another after it was loaded");
        }
        session second(*loaded);
        session third(*saved);  // begins with the same random token as the second
        second.decode("after a load", { 0 });
        third.decode("after a load", { 0 });
        if (!is_same(model, second.stages[0].logits, third.stages[0].logits)) {
            throw std::runtime_error("logits differ after the state of " + part + " was loaded");
        }
    }
}
