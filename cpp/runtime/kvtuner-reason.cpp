#include "kvtuner-reason.h"

#include "kvtuner.h"

#include <string>
#include <utility>

static thread_local std::string last_reason;

static void erase_word_before_colon(std::string & text) {
    const size_t colon = text.find(": ");
    if (colon != std::string::npos && text.find(' ') > colon) {
        text.erase(0, colon + 2);
    }
}

// "state_load_file: error loading session file: why" is "why"
static std::string without_prefixes(std::string text) {
    erase_word_before_colon(text);
    if (text.compare(0, 6, "error ") == 0 && text.find(": ") != std::string::npos) {
        text.erase(0, text.find(": ") + 2);
        erase_word_before_colon(text);
    }
    return text.substr(0, text.find_last_not_of(" \n") + 1);
}

void kvtuner_note_log(ggml_log_level level, const char * text) {
    if (level == GGML_LOG_LEVEL_ERROR && last_reason.empty()) {
        last_reason = without_prefixes(text);
    }
}

const char * kvtuner_take_reason() {
    static thread_local std::string taken;
    taken = std::exchange(last_reason, {});
    return taken.c_str();
}
