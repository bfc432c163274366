#include "kvtuner-metal-source.h"

#include "ggml.h"

#include <set>
#include <sstream>

namespace {

// files by their names; written by embed.cmake
const std::map<std::string, std::string> & texts() {
    static const std::map<std::string, std::string> by_name = {
#include "kvtuner-metal-texts.inc"
    };
    return by_name;
}

// the file that a line includes, if it is one of these
std::string included(const std::string & line) {
    static const std::string begin = "#include \"";
    if (line.compare(0, begin.size(), begin) != 0) {
        return "";
    }
    const std::string name = line.substr(begin.size(), line.find('"', begin.size()) - begin.size());
    return texts().count(name) ? name : "";
}

// each file once, with the lines that the compiler is to name
void append(const std::string & name, std::set<std::string> & seen, std::string & source) {
    if (!seen.insert(name).second) {
        return;
    }
    const auto mark = [&](int line) { source += "#line " + std::to_string(line) + " \"" + name + "\"\n"; };
    std::istringstream text(texts().at(name));
    mark(1);
    int number = 0;
    for (std::string line; std::getline(text, line);) {
        ++number;
        const std::string other = included(line);
        if (!other.empty()) {
            append(other, seen, source);
            mark(number + 1);
        } else if (line != "#pragma once") {
            source += line + "\n";
        } else {
            source += "\n";
        }
    }
}

}  // namespace

std::string kvtuner_metal_source(const std::string & file, const kvtuner_metal_defines & defines) {
    GGML_ASSERT(texts().count(file));
    std::string source;
    for (const auto & [name, value] : defines) {
        source += "#define " + name + " " + value + "\n";
    }
    std::set<std::string> seen;
    append(file, seen, source);
    return source;
}
