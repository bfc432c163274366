// The kernels of cpp/cuda for attention, on the CPU, thread by thread, against a plain loop in float64:
// every pair of types that a plan can choose and all head sizes with kernels, as plans for small and large devices
// share the work out. Every way that the kernels take must be among the cases.
//
//   kvtuner-test-cuda-attention [CASES OF A PAIR] [SEED]
//
// With KVTUNER_SHOW set, each case is written before it runs.

#include "attention_errors.h"
#include "kvtuner-cuda-plan.cuh"
#include "kvtuner-cuda-prefill-plan.cuh"
#include "kvtuner-cuda-q8.cuh"
#include "kvtuner-formats.h"
#include "rotated_case.h"

#include <map>

using namespace kvtuner::cuda;

namespace {

constexpr int MOST_SHARED = cuda_on_cpu::MOST_SHARED;
constexpr double MOST_HERE = 2e-5;  // normalized error: a token too many of a hundred is more

constexpr ggml_type TYPES[] = { GGML_TYPE_F16,    GGML_TYPE_Q8_0,  GGML_TYPE_Q5_0, GGML_TYPE_Q4_0,
                                GGML_TYPE_IQ4_NL, GGML_TYPE_Q3_NL, GGML_TYPE_Q2_NL };
const head_sizes SIZES[] = { { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 }, { 512, 512 } };

setting random_setting(ggml_type type_k, ggml_type type_v, head_sizes size, std::mt19937 & random) {
    setting s = {};
    s.type_k = type_k;
    s.type_v = type_v;
    s.size = size;
    s.group = pick({ 1, 2, 3, 4, 8, 16 }, random);
    s.n_head_kv = size.k >= 192 ? 1 : pick({ 1, 2, 2, 3 }, random);
    s.n_stream = pick({ 1, 1, 2, 3 }, random);
    s.n_query = pick({ 1, 1, 2, 5, 16 }, random);
    s.n_token = pick({ 48, 256, 272, 320, 512, 528, 1024, 1024, 1536 }, random);
    s.mask = pick({ CAUSAL, WINDOW, HOLES }, random);
    s.scale = 1 / std::sqrt((float)size.k);
    s.max_bias = pick({ 0.0f, 0.0f, 8.0f }, random);
    s.softcap = pick({ 0.0f, 0.0f, 30.0f }, random);
    s.has_sinks = random() % 3 == 0;
    s.n_center = pick({ 0, 0, 1, 3, 16 }, random);
    s.n_slot = pick({ 0, 0, 1, 36, 97 }, random);
    s.type_exact = random() % 2 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    s.all_see = random() % 2;
    s.has_own_slots = random() % 2;
    return s;
}

// so many tokens of small types that a warp takes 32 of them at once
setting long_setting(std::mt19937 & random) {
    const int64_t size = pick({ 64, 128 }, random);
    const ggml_type small[] = { GGML_TYPE_Q4_0, GGML_TYPE_Q3_NL, GGML_TYPE_Q2_NL };
    setting s = random_setting(pick(small, random), pick(small, random), { size, size }, random);
    s.n_head_kv = 2;
    s.n_query = 1;
    s.n_token = 1024;
    return s;
}

setting many_setting(ggml_type type_k, ggml_type type_v, head_sizes size, std::mt19937 & random) {
    setting s = random_setting(type_k, type_v, size, random);
    s.group = pick({ 1, 3, 4, 7, 12 }, random);
    s.n_query = pick({ 17, 40, 70 }, random);
    s.n_head_kv = size.k >= 192 ? 1 : pick({ 1, 2 }, random);
    s.n_token = pick({ 16, 80, 256, 528, 1024 }, random);
    s.n_slot = pick({ 0, 0, 1, 32, 64, 97 }, random);
    s.are_slots_seen = random() % 2;
    s.mask = pick({ CAUSAL, WINDOW, HOLES, BIASES }, random);
    return s;
}

// exact rows of so many heads that shared memory has no room for 16 of each
setting crowded_setting(std::mt19937 & random) {
    setting s = random_setting(GGML_TYPE_Q2_NL, GGML_TYPE_Q2_NL, { 192, 128 }, random);
    s.n_head_kv = 8;
    s.group = 1;
    s.n_query = pick({ 1, 5 }, random);
    s.n_token = 528;
    s.n_slot = 36;
    s.type_exact = GGML_TYPE_F16;
    return s;
}

// heads so large that a small block of threads has room for one lot
setting wide_setting(std::mt19937 & random) {
    setting s = random_setting(GGML_TYPE_F16, GGML_TYPE_F16, { 512, 512 }, random);
    s.n_head_kv = s.n_stream = s.n_query = 1;
    s.n_token = 1024;
    s.n_slot = 97;
    return s;
}

device_limits random_limits(std::mt19937 & random) {
    return { pick({ 1, 1, 2, 24, 132 }, random), pick({ 101376, 166912, MOST_SHARED }, random), random() % 2 == 0 };
}

// the memory that parts are in is no numbers before
template <typename PLAN>
void run_in_parts(PLAN & plan, const setting & s) {
    merge_args & merge = plan.args.merge;
    const int64_t n = (int64_t)merge.n_columns() * merge.n_parts * plan.launch.n_stream;
    std::vector<float> parts(n * s.size.v, NAN);
    std::vector<float2> sums(n, { NAN, NAN });
    merge.parts = parts.data();
    merge.sums = sums.data();
    launch_plan(plan, s.size.k, s.size.v);
}

void run(attention_plan & plan, const setting & s) {
    run_in_parts(plan, s);
}

void run(prefill_plan & plan, const setting & s) {
    std::vector<seen> marks(plan.args.seen_by.size());
    plan.args.seen_by.marks = marks.data();
    mark_seen(seen_of(plan.args), plan.launch.stream);
    run_in_parts(plan, s);
}

// Blocks of q8_1 as upstream's quantize_q8_1 makes them.
std::vector<char> q8_of(const std::vector<float> & x) {
    std::vector<char> blocks(x.size() / Q8_VALUES * Q8_BYTES);
    char * block = blocks.data();
    for (auto values = x.begin(); values != x.end(); values += Q8_VALUES, block += Q8_BYTES) {
        float most = 0, sums[Q8_VALUES];
        for (int i = 0; i < Q8_VALUES; ++i) {
            most = std::max(most, std::fabs(values[i]));
            sums[i] = values[i];
        }
        for (int n = Q8_VALUES / 2; n > 0; n /= 2) {
            for (int i = 0; i < n; ++i) {
                sums[i] += sums[i + n];
            }
        }
        const ggml_fp16_t pair[] = { ggml_fp32_to_fp16(most / 127), ggml_fp32_to_fp16(sums[0]) };
        memcpy(block, pair, sizeof(pair));
        for (int i = 0; i < Q8_VALUES; ++i) {
            block[4 + i] = (char)(most == 0 ? 0 : roundf(values[i] / (most / 127)));
        }
    }
    return blocks;
}

// how exact rows come to shared memory
std::vector<std::string> exact_ways_of(const attention_plan & plan) {
    const exact_share & share = plan.args.share;
    if (share.n_units == 0) {
        return {};
    }
    if (plan.args.team > 1) {
        return { "exact rows of teams" };
    }
    std::vector<std::string> ways = { share.slots == TOKENS ? "exact rows, 16 a unit" : "exact rows, fewer a unit" };
    if (share.n_units > share.n_parts * share.sub_warps) {
        ways.push_back("exact rows, units of a warp in turns");
    }
    if (share.n_parts < plan.launch.n_parts && share.n_parts < share.n_units) {
        ways.push_back("exact rows, parts with fewer lots");
    }
    if (!plan.launch.is_short && plan.args.exact_at.first_lots < plan.args.lots_ahead) {
        ways.push_back("exact rows, before some of the first lots");
    }
    return ways;
}

// which of their ways the kernels take
std::vector<std::string> ways_of(const prefill_plan & plan) {
    return { plan.args.merge.n_parts == 1 ? "many queries, one part" : "many queries, parts" };
}

std::vector<std::string> ways_of(const attention_plan & plan) {
    const attention_launch & l = plan.launch;
    std::vector<std::string> ways = exact_ways_of(plan);
    ways.push_back(std::to_string(l.tiles) + " tiles");
    if (plan.args.team > 1) {
        ways.push_back("teams, units: " + std::to_string(plan.args.units));
        ways.push_back(std::to_string(plan.args.sub_warps) + " teams");
        ways.push_back(plan.args.lots_ahead == 0 ? "lots of teams: one after the other"
                       : plan.args.n_lots == 1   ? "lots of teams: one"
                                                 : "lots of teams: several");
    } else if (l.is_short) {
        ways.push_back(l.n_parts == 1 ? "tokens in place, one part" : "tokens in place, parts");
        ways.push_back("tokens in place, warps: " + std::to_string(plan.args.n_warps()));
    } else {
        ways.push_back(std::string(plan.args.lot.is_by_rows ? "rows" : "chunks") +
                       ", units of a warp: " + std::to_string(plan.args.units));
    }
    if (l.n_parts > 1) {
        ways.push_back(l.n_parts <= 8 ? "few parts" : "many parts");
    }
    return ways;
}

const char * const ALL_WAYS[] = {
    "1 tiles",
    "2 tiles",
    "4 tiles",
    "tokens in place, one part",
    "tokens in place, parts",
    "tokens in place, warps: 4",
    "tokens in place, warps: 8",
    "tokens in place, warps: 16",
    "rows, units of a warp: 1",
    "rows, units of a warp: 2",
    "chunks, units of a warp: 1",
    "chunks, units of a warp: 2",
    "teams, units: 1",
    "teams, units: 4",
    "1 teams",
    "2 teams",
    "4 teams",
    "lots of teams: one after the other",
    "lots of teams: one",
    "lots of teams: several",
    "few parts",
    "many parts",
    "many queries, one part",
    "many queries, parts",
    "rotated",
    "output as q8_1",
    "exact rows of teams",
    "exact rows, 16 a unit",
    "exact rows, fewer a unit",
    "exact rows, units of a warp in turns",
    "exact rows, parts with fewer lots",
    "exact rows, before some of the first lots",
};

struct tally : attention_errors {
    int n_left_out = 0;
    double worst = 0;
    std::map<std::string, int> ways;

    void run(const setting & s, const device_limits & limits, std::mt19937 & random) {
        cuda_on_cpu::how = { random() % 2 == 0, random() % 2 == 0 };
        text = s.text() + " processors " + std::to_string(limits.n_multiprocessors) + " shared " +
               std::to_string(limits.shared_bytes) + " rows " + std::to_string(limits.takes_rows) + " backward " +
               std::to_string(cuda_on_cpu::how.is_backward) + " late " +
               std::to_string(cuda_on_cpu::how.are_copies_late);
        if (getenv("KVTUNER_SHOW")) {
            printf("%s\n", text.c_str());
            fflush(stdout);
        }
        attention_case c(s, random);
        random() % 4 == 0 ? run_rotated(c, limits, random) : run_plain(c, limits, random);
    }

private:
    std::string text;

    void run_plain(const attention_case & c, const device_limits & limits, std::mt19937 & random) {
        if (attend(c, {}, limits)) {
            check_closely(c, values_of(c.out), random);
        }
    }

    void check_closely(const attention_case & c, const std::vector<float> & got, std::mt19937 & random) {
        const double error = check(c, got, text, random);
        n_failed += error > MOST_HERE && error <= MOST;
        worst = std::max(worst, error);
    }

    // as caches of a plan are read: the kernels rotate queries and output
    void run_rotated(attention_case & c, const device_limits & limits, std::mt19937 & random) {
        const rotated_case around(c);
        const ggml_tensor * turned = c.out->src[0]->src[0];
        if (attend(c, { turned->src[1], turned->src[0]->ne[0], around.out, around.out->src[0]->ne[0] }, limits)) {
            ++ways["rotated"];
            check_closely(c, around.before_rotation(values_of(around.out)), random);
        }
    }

    bool attend(const attention_case & c, const kvtuner::rotations & around, const device_limits & limits) {
        return c.s.n_query > MOST_FEW ? attend(c, around, plan_prefill(c.out, around, limits))
                                      : attend(c, around, plan_attention(c.out, around, limits));
    }

    template <typename PLAN>
    bool attend(const attention_case & c, const kvtuner::rotations & around, std::optional<PLAN> plan) {
        if (!plan) {
            ++n_left_out;
            return false;
        }
        for (const std::string & way : ways_of(*plan)) {
            ++ways[way];
        }
        const ggml_tensor * out = around.out ? around.out : c.out;
        memset(out->data, 0xff, ggml_nbytes(out));
        const bool has_q8 = n_cases % 2 == 0 && c.s.n_query <= MOST_FEW;
        std::vector<char> q8(has_q8 ? ggml_nelements(out) / Q8_VALUES * Q8_BYTES : 0);
        plan->args.merge.out_q8 = has_q8 ? q8.data() : nullptr;
        ::run(*plan, c.s);
        if (has_q8) {
            check_q8(q8, values_of(out));
        }
        return true;
    }

    void check_q8(const std::vector<char> & got, const std::vector<float> & out) {
        ++ways["output as q8_1"];
        if (got != q8_of(out)) {
            printf("FAIL other blocks of q8_1: %s\n", text.c_str());
            ++n_failed;
        }
    }

    static std::vector<float> values_of(const ggml_tensor * t) {
        const float * values = (const float *)t->data;
        return std::vector<float>(values, values + ggml_nelements(t));
    }
};

}  // namespace

int main(int argc, char ** argv) {
    const int n_each = argc > 1 ? atoi(argv[1]) : 4;
    std::mt19937 random(argc > 2 ? atoi(argv[2]) : 1);
    tally all;
    for (ggml_type type_k : TYPES) {
        for (ggml_type type_v : TYPES) {
            for (int i = 0; i < n_each;) {
                const head_sizes size = pick(SIZES, random);
                if (fits(type_k, size.k) && fits(type_v, size.v)) {
                    all.run(random_setting(type_k, type_v, size, random), random_limits(random), random);
                    if (i % 2 == 0 && size.k <= 256) {
                        const device_limits limits = { pick({ 1, 2, 24, 132 }, random), MOST_SHARED, true };
                        all.run(many_setting(type_k, type_v, size, random), limits, random);
                    }
                    ++i;
                }
            }
        }
    }
    for (int i = 0; i < 3 * n_each; ++i) {
        all.run(long_setting(random), { 1, MOST_SHARED, i % 2 == 0 }, random);
    }
    for (int i = 0; i < n_each; ++i) {
        all.run(crowded_setting(random), { 1, 101376, i % 2 == 0 }, random);
        all.run(wide_setting(random), { 16, 65536, false }, random);
    }
    for (const char * way : ALL_WAYS) {
        printf("%s: %d\n", way, all.ways[way]);
        all.n_failed += all.ways[way] == 0;
    }
    printf("%d cases, %d not taken, worst normalized error %.2e\n", all.n_cases, all.n_left_out, all.worst);
    printf("%d failures\n", all.n_failed);
    return all.n_failed != 0;
}
