#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <regex>
#include <unistd.h>

template <class Function>
static void find(void * handle, const char * name, Function *& function) {
    function = reinterpret_cast<Function *>(dlsym(handle, name));
}

std::string metal_text(const std::string & source) {
    namespace fs = std::filesystem;
    const char * folder = getenv("KVTUNER_METAL_TEXTS");
    const fs::path path = fs::path(folder ? folder : ".") / std::to_string(std::hash<std::string>()(source));
    const fs::path unfinished = path / ("text." + std::to_string(getpid()));
    fs::create_directories(path);
    std::ofstream(unfinished) << source;
    fs::rename(unfinished, path / "kvtuner.metal");
    return path / "kvtuner.metal";
}

// the path that `tests.metal.backend` prints; empty where it fails
static std::string compiled(const std::string & text, const std::string & name) {
    const char * command = getenv("KVTUNER_METAL_COMPILE");
    FILE * pipe = popen((std::string(command ? command : "false") + " " + name + " " + text).c_str(), "r");
    char path[4096] = "";
    if (!pipe || !fgets(path, sizeof path, pipe)) {
        path[0] = '\0';
    }
    const bool done = pipe && pclose(pipe) == 0;
    return done ? std::string(path).substr(0, std::string(path).find('\n')) : "";
}

static const MetalKernel::Library * load(const std::string & text, const std::string & name) {
    static std::map<std::string, MetalKernel::Library> by_name;
    const auto found = by_name.find(text + " " + name);
    if (found != by_name.end()) {
        return &found->second;
    }
    const std::string path = compiled(text, name);
    void * handle = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        fprintf(stderr, "no kernel %s: %s\n", name.c_str(), path.empty() ? "it does not compile" : dlerror());
        return nullptr;
    }
    MetalKernel::Library & library = by_name[text + " " + name];
    find(handle, "emulator_clear", library.clear);
    find(handle, "emulator_allocate", library.allocate);
    find(handle, "emulator_set_constant", library.set_constant);
    find(handle, "emulator_pointers", library.pointers);
    find(handle, "emulator_dispatch", library.dispatch);
    return &library;
}

static emulator::Rules rules() {
    const char * text = getenv("KVTUNER_METAL_ORDER");
    const std::string order = text ? text : "forward";
    const auto which = order == "reverse"  ? emulator::Order::reverse
                       : order == "random" ? emulator::Order::random
                                           : emulator::Order::forward;
    return { which, 1, false, true, 0 };
}

// Upstream's 8 x 8 kernel of rows of these sizes reads behind them, and what nobody wrote, for columns that it drops.
static bool reads_behind(const std::string & kernel) {
    static const std::regex sizes("kernel_flash_attn_ext_(?!vec).*_dk(80|96|112)_.*");
    return std::regex_match(kernel, sizes);
}

// NaN, with room behind it, that is not watched
static void * unwatched(size_t size) {
    static constexpr size_t behind = 1 << 16;
    static std::vector<char> memory;
    memory.assign(size + behind, (char)0xFF);
    return memory.data();
}

void MetalKernel::dispatch(const std::vector<void *> & buffers, const std::vector<size_t> & threadgroup_bytes,
                           emulator::Position grid, emulator::Position threads) const {
    static const int threadgroup_memory = 2;
    if (getenv("KVTUNER_METAL_SHOW")) {
        fprintf(stderr, "run %s\n", name.c_str());
    }
    const Library * library = load(text, name);
    const int pointers = library ? library->pointers(name.c_str()) : -1;
    if (pointers < 0) {
        exit(3);
    }
    library->clear();
    for (const auto & [id, value] : constants) {
        library->set_constant(id, value);
    }
    std::vector<void *> given(buffers.begin(), buffers.begin() + (pointers - threadgroup_bytes.size()));
    for (const size_t size : threadgroup_bytes) {
        given.push_back(reads_behind(name) ? unwatched(size) : library->allocate(size, threadgroup_memory));
    }
    const emulator_dispatch_arguments arguments{ name.c_str(), given.data(), (unsigned)given.size(),
                                                 grid,         threads,      rules() };
    if (const char * failure = library->dispatch(&arguments)) {
        fprintf(stderr, "%s: %s\n", name.c_str(), failure);
        exit(3);
    }
}
