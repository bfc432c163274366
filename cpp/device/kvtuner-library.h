// Where back ends are loaded at run time they lie beside the library that this is compiled into, also where the program
// is Python. Where they are linked with there is nothing to look for.
#pragma once

#include <filesystem>
#include <vector>

#if defined(GGML_BACKEND_DL) && !defined(_WIN32)
#    include <dlfcn.h>

static void kvtuner_add_library_folder(std::vector<std::filesystem::path> & folders) {
    Dl_info info;
    if (dladdr((void *)&kvtuner_add_library_folder, &info) && info.dli_fname) {
        folders.push_back(std::filesystem::path(info.dli_fname).parent_path());
    }
}
#else
static void kvtuner_add_library_folder(std::vector<std::filesystem::path> &) {
}
#endif
