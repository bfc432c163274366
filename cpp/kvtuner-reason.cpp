#include "kvtuner-reason.h"

#include "kvtuner.h"

#include <string>
#include <utility>

static thread_local std::string last_reason;

// "state_load_file: error loading session file: why" is "why"
static std::string without_prefixes(std::string text) {
    const std::string separator = ": ";
    const size_t name = text.find(separator);
    if (name != std::string::npos && text.find(' ') > name) {
        text.erase(0, name + separator.size());
    }
    if (text.compare(0, 6, "error ") == 0 && text.find(separator) != std::string::npos) {
        text.erase(0, text.find(separator) + separator.size());
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
