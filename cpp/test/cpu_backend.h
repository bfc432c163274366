// The CPU back end for programs that call its functions: a build of all variants loads it at run time, so that nothing
// can be linked with. GGML_BACKEND_PATH names the variant; without it, or where it names another back end, the best one
// is taken.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

inline ggml_backend_reg_t cpu_registry() {
    static const ggml_backend_reg_t registry = [] {
        const char * path = getenv("GGML_BACKEND_PATH");
        ggml_backend_reg_t named = path ? ggml_backend_load(path) : nullptr;
        if (named && strcmp(ggml_backend_reg_name(named), "CPU") == 0) {
            return named;
        }
        ggml_backend_load_all();
        return ggml_backend_reg_by_name("CPU");
    }();
    if (!registry) {
        fprintf(stderr, "no CPU back end: see GGML_BACKEND_PATH\n");
        exit(2);
    }
    return registry;
}

// the library that the back end lies in
inline const char * cpu_library() {
    Dl_info info;
    dladdr(ggml_backend_reg_get_proc_address(cpu_registry(), "ggml_backend_set_n_threads"), &info);
    return info.dli_fname;
}

inline void * cpu_symbol(const char * name) {
    static void * library = dlopen(cpu_library(), RTLD_NOW | RTLD_NOLOAD);
    void * symbol = library ? dlsym(library, name) : nullptr;
    if (!symbol) {
        fprintf(stderr, "%s has no %s\n", cpu_library(), name);
        exit(2);
    }
    return symbol;
}

#define CPU_FUNCTION(name) ((decltype(&name))cpu_symbol(#name))
