// The folder of the library that this is compiled into. Where back ends are loaded at run time they lie beside it, also
// where the program is Python; empty where they are linked with.
#pragma once

#include <filesystem>

#if defined(GGML_BACKEND_DL) && !defined(_WIN32)
#    include <dlfcn.h>

static std::filesystem::path kvtuner_library_folder() {
    Dl_info info;
    const bool is_known = dladdr((void *)&kvtuner_library_folder, &info) && info.dli_fname;
    return is_known ? std::filesystem::path(info.dli_fname).parent_path() : std::filesystem::path();
}
#else
static std::filesystem::path kvtuner_library_folder() {
    return {};
}
#endif
