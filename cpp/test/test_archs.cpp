// Every architecture with mixed plans, held against a slow reference.
//
// For each model: plans that it must refuse; then each plan through the scripts of arch_runs.h, in a context that
// follows the plan and in one with f32 caches whose rows are rounded by slow_cache.h. Their logits must agree up to
// what the arithmetic of attention over quantized rows costs.

#include "arch_plans.h"
#include "arch_runs.h"
#include "slow_cache.h"

#include "kvtuner-layers.h"
#include "kvtuner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

// How far the logits of a plan may be from those of its reference. Attention itself rounds, to f16 or to a q8_0 query,
// as much as uniform caches differ from theirs, the floor; and what it rounds differs by what the plan's types round
// away.
static constexpr double MAX_FLOORS = 4.0;
static constexpr double MAX_FLOOR = 2e-3;  // beyond it something is wrong with uniform caches, too
static constexpr double MAX_EFFECT = 0.1;
static constexpr double NOISE_NMSE = 1e-10;  // the order of additions
static constexpr ggml_type FLOOR_TYPES[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0 };

static constexpr const char * IGNORED = "this model keeps no KV cache, its plan is ignored";

enum class mistake { none, rotation, center, scale, layer };

static const std::map<std::string, mistake> MISTAKES = {
    { "rotation", mistake::rotation },
    { "center", mistake::center },
    { "scale", mistake::scale },
    { "layer", mistake::layer },
};

struct options {
    std::string pairs;
    mistake wrong = mistake::none;
    std::vector<std::string> paths;
};

// normalized mean squared errors
struct difference {
    double error = 0.0;   // of the plan from the reference
    double effect = 0.0;  // of the reference from exact f32 caches
    double limit = 0.0;
    double kld = 0.0;  // of the plan's predictions from the reference's
    std::string where;

    bool is_good() const {
        return error <= limit;
    }
    bool is_worse_than(const difference & other) const {
        return where.empty() ? false : other.where.empty() || !(error / limit <= other.error / other.limit);
    }
};

static std::string log_text;

static void keep_log(ggml_log_level, const char * text, void *) {
    log_text += text;
}

[[noreturn]] static void fail(const std::string & message) {
    throw std::runtime_error(message);
}

static bool is_silent_progress(float, void *) {
    return true;
}

static double log_sum_exp(const float * row, size_t n) {
    const double top = *std::max_element(row, row + n);
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += std::exp(row[i] - top);
    }
    return top + std::log(sum);
}

// mean KL divergence of the found predictions from the expected ones
static double mean_kld(const std::vector<float> & expected, const std::vector<float> & found, size_t n_vocab) {
    double sum = 0.0;
    for (size_t row = 0; row < expected.size(); row += n_vocab) {
        const double norm_p = log_sum_exp(&expected[row], n_vocab);
        const double norm_q = log_sum_exp(&found[row], n_vocab);
        for (size_t i = row; i < row + n_vocab; ++i) {
            sum += std::exp(expected[i] - norm_p) * ((expected[i] - norm_p) - (found[i] - norm_q));
        }
    }
    return sum / (expected.size() / n_vocab);
}

static const std::vector<float> & logits_of(const run_stages & stages, const run_stage & like, size_t i) {
    if (i >= stages.size() || stages[i].logits.size() != like.logits.size()) {
        fail("plan and reference go different ways in '" + like.name + "'");
    }
    return stages[i].logits;
}

static difference worst(const run_stages & reference, const run_stages & exact, const run_stages & found,
                        size_t n_vocab, double floor, const char * script) {
    difference result;
    for (size_t i = 0; i < reference.size(); ++i) {
        const std::vector<float> & expected = reference[i].logits;
        const std::vector<float> & logits = logits_of(found, reference[i], i);
        const double effect = nmse(logits_of(exact, reference[i], i), expected);
        const difference stage = { nmse(expected, logits), effect,
                                   MAX_EFFECT * effect + MAX_FLOORS * floor + NOISE_NMSE,
                                   mean_kld(expected, logits, n_vocab),
                                   std::string(script) + ", " + reference[i].name };
        if (stage.is_worse_than(result)) {
            result = stage;
        }
    }
    return result;
}

static void select_plan(llama_model & model, const std::string & kv_config) {
    char err[512];
    if (!kvtuner_model_set_kv_config(&model, kv_config.c_str(), true, true, err, sizeof(err))) {
        fail(err);
    }
}

static llama_context_ptr make_context(llama_model & model, const llama_context_params & params) {
    log_text.clear();
    llama_context_ptr ctx(llama_init_from_model(&model, params));
    if (!ctx) {
        fail("no context: " + log_text.substr(log_text.rfind('\n', log_text.size() - 2) + 1));
    }
    return ctx;
}

static void check_types(const llama_context & ctx, const kvtuner_plan & plan) {
    for (int32_t il = 0; il < kvtuner_n_layer(&ctx); ++il) {
        const int32_t type_k = kvtuner_type_k(&ctx, il);
        if (type_k >= 0 && (type_k != plan.type_k[il] || kvtuner_type_v(&ctx, il) != plan.type_v[il])) {
            fail("layer " + std::to_string(il) + " has " + ggml_type_name((ggml_type)type_k) + " keys, the plan " +
                 ggml_type_name(plan.type_k[il]));
        }
    }
}

static void check_refusals(llama_model & model) {
    for (const refused_plan & refused : refused_plans(model)) {
        select_plan(model, plan_json(refused.plan));
        llama_context_params params = script_params(run_script::one_sequence);
        if (!refused.has_flash_attn) {
            params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        }
        log_text.clear();
        const llama_context_ptr ctx(llama_init_from_model(&model, params));
        if (ctx || log_text.find(refused.reason) == std::string::npos) {
            fail("a plan (" + refused.name + ") was not refused with '" + refused.reason + "'");
        }
        printf("  refuses %s: %s\n", refused.name.c_str(), refused.reason.c_str());
    }
}

// a mistake of the reference stands for one of the library: the comparison sees the same difference
static kvtuner_plan mistaken(kvtuner_plan plan, mistake wrong) {
    if (wrong == mistake::layer) {
        std::rotate(plan.type_k.begin(), plan.type_k.begin() + 1, plan.type_k.end());
        std::rotate(plan.type_v.begin(), plan.type_v.begin() + 1, plan.type_v.end());
    }
    return plan;
}

// The model under test, on whatever devices the build has, and the same on the CPU, whose caches can be rounded in
// place.
struct model_pair {
    llama_model & planned;
    llama_model & on_cpu;
};

static run_stages run_exact(llama_model & model, run_script script) {
    llama_context_params params = script_params(script);
    params.op_offload = false;
    slow_cache exact;
    exact.attach(params);
    return run(*make_context(model, params), script);
}

static run_stages run_reference(llama_model & model, const kvtuner_plan & plan, run_script script, mistake wrong) {
    llama_context_params params = script_params(script);
    params.op_offload = false;
    slow_cache cache;
    cache.attach(params);
    const llama_context_ptr ctx = make_context(model, params);
    cache.follow(*ctx, mistaken(plan, wrong));
    if (wrong == mistake::rotation) {
        cache.forget_a_rotation();
    } else if (wrong == mistake::center) {
        cache.forget_a_center();
    } else if (wrong == mistake::scale) {
        cache.forget_a_scale();
    }
    return run(*ctx, script);
}

static run_stages run_planned(llama_model & model, const kvtuner_plan & plan, run_script script) {
    const llama_context_ptr ctx = make_context(model, script_params(script));
    check_types(*ctx, plan);
    return run(*ctx, script);
}

static std::vector<run_script> single_scripts(const llama_model & model) {
    std::vector<run_script> scripts = { run_script::one_sequence };
    if (llama_model_n_layer_nextn(&model) > 0) {
        scripts.push_back(run_script::draft);
    }
    return scripts;
}

static std::vector<run_script> all_scripts(const llama_model & model) {
    std::vector<run_script> scripts = single_scripts(model);
    scripts.push_back(run_script::unified_streams);
    scripts.push_back(run_script::own_streams);
    return scripts;
}

static difference compare(const model_pair & models, const kvtuner_plan & plan, double floor, mistake wrong) {
    const size_t n_vocab = (size_t)llama_vocab_n_tokens(llama_model_get_vocab(&models.planned));
    difference result;
    for (run_script script : all_scripts(models.planned)) {
        const difference found =
                worst(run_reference(models.on_cpu, plan, script, wrong), run_exact(models.on_cpu, script),
                      run_planned(models.planned, plan, script), n_vocab, floor, script_name(script));
        if (found.is_worse_than(result)) {
            result = found;
        }
    }
    return result;
}

static double largest_error(const model_pair & models, const kvtuner_plan & plan, run_script script) {
    const run_stages reference = run_reference(models.on_cpu, plan, script, mistake::none);
    const run_stages found = run_planned(models.planned, plan, script);
    double largest = 0.0;
    for (size_t i = 0; i < reference.size(); ++i) {
        const double error = nmse(reference[i].logits, logits_of(found, reference[i], i));
        largest = std::isnan(error) ? error : std::max(largest, error);
    }
    return largest;
}

// the largest error of uniform caches, which are the base's own
static double floor_of(const model_pair & models) {
    double floor = 0.0;
    for (ggml_type type : FLOOR_TYPES) {
        const std::string name = ggml_type_name(type);
        const named_plan named = plan_from_pairs(models.planned, name + "/" + name);
        select_plan(models.planned, plan_json(named.plan));
        for (run_script script : single_scripts(models.planned)) {
            const double error = largest_error(models, named.plan, script);
            floor = std::isnan(error) ? error : std::max(floor, error);
        }
    }
    if (!(floor <= MAX_FLOOR)) {
        fail("uniform caches differ from their reference by NMSE " + std::to_string(floor) + ": above the limit");
    }
    return floor;
}

static void test_ignored(llama_model & model) {
    const bool has_memory = llama_get_memory(make_context(model, script_params(run_script::one_sequence)).get());
    const run_script script = has_memory ? run_script::one_sequence : run_script::no_memory;
    const llama_context_ptr with_plan = make_context(model, script_params(script));
    const size_t at = log_text.find(IGNORED);
    if (at == std::string::npos || log_text.find(IGNORED, at + 1) != std::string::npos) {
        fail("not one line of the log says that the plan is ignored");
    }
    select_plan(model, "none");
    const llama_context_ptr without = make_context(model, script_params(script));
    const run_stages expected = run(*without, script);
    if (worst(expected, expected, run(*with_plan, script), 1, 0.0, "").error != 0.0) {
        fail("an ignored plan changes the logits");
    }
    printf("  ignored: the model keeps no KV cache\n");
}

static bool test_plan(const model_pair & models, const named_plan & named, double floor, mistake wrong) {
    select_plan(models.planned, plan_json(named.plan));
    const difference found = compare(models, named.plan, floor, wrong);
    printf("  %s: NMSE %.1e, limit %.1e, effect %.1e, KLD %.1e (%s)%s\n", named.name.c_str(), found.error, found.limit,
           found.effect, found.kld, found.where.c_str(), found.is_good() ? "" : " FAILED: above the limit");
    check_restore(models.planned, script_params(run_script::one_sequence));
    return found.is_good();
}

static llama_model_ptr load(const std::string & path, bool on_cpu) {
    llama_model_params params = llama_model_default_params();
    params.progress_callback = is_silent_progress;
    params.load_mtp = true;
    params.n_gpu_layers = on_cpu ? 0 : params.n_gpu_layers;
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        fail("the model does not load");
    }
    return model;
}

static bool test_model(const options & opts, const std::string & path) {
    const llama_model_ptr model = load(path, false);
    const llama_model_ptr reference = load(path, true);
    const model_pair models = { *model, *reference };
    std::vector<named_plan> plans = mixed_plans(*model);
    if (!opts.pairs.empty()) {
        plans = { plan_from_pairs(*model, opts.pairs) };
    }
    select_plan(*model, plan_json(plans[0].plan));
    char reason[512];
    const llama_context_params context_params = script_params(run_script::one_sequence);
    if (!kvtuner_check_context(model.get(), &context_params, reason, sizeof(reason))) {
        printf("  refused: %s\n", reason);
        return true;
    }
    if (kvtuner_caches_of(llama_get_memory(make_context(*model, context_params).get())).empty()) {
        test_ignored(*model);
        return true;
    }
    check_refusals(*model);
    const double floor = floor_of(models);
    printf("  floor: NMSE %.1e\n", floor);
    bool is_good = true;
    for (const named_plan & named : plans) {
        is_good = test_plan(models, named, floor, opts.wrong) && is_good;
    }
    return is_good;
}

static bool parse(int argc, char ** argv, options & opts) {
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const std::string value = i + 1 < argc ? argv[i + 1] : "";
        if (word == "--plan") {
            opts.pairs = value;
            ++i;
        } else if (word == "--wrong" && MISTAKES.count(value)) {
            opts.wrong = MISTAKES.at(value);
            ++i;
        } else if (word[0] == '-') {
            return false;
        } else {
            opts.paths.push_back(word);
        }
    }
    return !opts.paths.empty();
}

int main(int argc, char ** argv) {
    options opts;
    if (!parse(argc, argv, opts)) {
        fprintf(stderr, "usage: %s [--plan K/V,K/V,...] [--wrong rotation|center|scale|layer] MODEL.gguf...\n",
                argv[0]);
        return 2;
    }
    setvbuf(stdout, nullptr, _IOLBF, 0);  // so that the model that aborts is the last one named
    llama_log_set(keep_log, nullptr);
    ggml_backend_load_all();
    llama_backend_init();
    bool is_good = true;
    for (const std::string & path : opts.paths) {
        printf("%s\n", path.substr(path.rfind('/') + 1).c_str());
        try {
            is_good = test_model(opts, path) && is_good;
        } catch (const std::exception & err) {
            printf("  FAILED: %s\n", err.what());
            is_good = false;
        }
    }
    return is_good ? 0 : 1;
}
