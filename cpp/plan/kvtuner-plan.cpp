#include "kvtuner-plan.h"

#include "kvtuner-formats.h"

#include <algorithm>
#include <iterator>

ggml_type kvtuner_type_from_name(const std::string & name) {
    const auto has_name = [&](ggml_type type) { return name == ggml_type_name(type); };
    const auto found = std::find_if(std::begin(KVTUNER_CACHE_TYPES), std::end(KVTUNER_CACHE_TYPES), has_name);
    return found == std::end(KVTUNER_CACHE_TYPES) ? GGML_TYPE_COUNT : *found;
}

std::string kvtuner_unknown_type(const std::string & shown, const char * side) {
    std::string known;
    for (ggml_type type : KVTUNER_CACHE_TYPES) {
        known += (known.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    return "unknown cache type " + shown + " for " + side + ": use one of " + known;
}
