#include "kvtuner-choice.h"

#include "kvtuner.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <mutex>
#include <stdexcept>

namespace {

constexpr const char * OVERRIDE_KEY = "kvtuner.choice";

// An override has room for 127 bytes, a path may be longer: it holds the choice's number here.
std::mutex choices_mutex;
std::deque<kvtuner_choice> choices;

size_t number_of(const kvtuner_choice & choice) {
    const auto is_same = [&](const kvtuner_choice & other) {
        return other.kv_config == choice.kv_config && other.types_given == choice.types_given &&
               other.use_centers == choice.use_centers && other.use_ends == choice.use_ends;
    };
    std::lock_guard<std::mutex> lock(choices_mutex);
    const auto found = std::find_if(choices.begin(), choices.end(), is_same);
    const size_t number = (size_t)(found - choices.begin());
    if (found == choices.end()) {
        choices.push_back(choice);
    }
    return number;
}

}  // namespace

std::string kvtuner_config_text(const char * kv_config) {
    return kv_config && *kv_config ? kv_config : "auto";
}

void kvtuner_check_conflict(const std::string & kv_config, bool types_given) {
    if (types_given && kv_config != "auto" && kv_config != "none") {
        throw std::runtime_error("--kv-config " + kv_config + " and -ctk/-ctv ask for different caches: keep one");
    }
}

kvtuner_choice kvtuner_choice_of(const std::unordered_map<std::string, llama_model_kv_override> & overrides) {
    const auto it = overrides.find(OVERRIDE_KEY);
    if (it == overrides.end() || it->second.tag != LLAMA_KV_OVERRIDE_TYPE_INT) {
        return {};
    }
    const uint64_t number = (uint64_t)it->second.val_i64;
    std::lock_guard<std::mutex> lock(choices_mutex);
    return number < choices.size() ? choices[number] : kvtuner_choice{};
}

llama_model_kv_override kvtuner_kv_override(const char * kv_config, bool types_given, bool use_centers, bool use_ends) {
    llama_model_kv_override override = {};
    override.tag = LLAMA_KV_OVERRIDE_TYPE_INT;
    snprintf(override.key, sizeof(override.key), "%s", OVERRIDE_KEY);
    override.val_i64 = (int64_t)number_of({ kvtuner_config_text(kv_config), types_given, use_centers, use_ends });
    return override;
}
