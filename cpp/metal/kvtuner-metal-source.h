// The texts of our kernels.
#pragma once

#include <map>
#include <string>

// What a text is compiled for: macros and their values.
using kvtuner_metal_defines = std::map<std::string, std::string>;

// a file of cpp/metal with all that it includes, behind these macros
std::string kvtuner_metal_source(const std::string & file, const kvtuner_metal_defines & defines);
