// Hostile plans: the readers of JSON and of GGUF metadata must give a plan or one line, whatever the bytes.
//
// With clang's libFuzzer (-fsanitize=fuzzer) this is an ordinary fuzz target. With any other compiler it has a main of
// its own: `fuzz_plan SECONDS SEED CORPUS_FOLDER` mutates the files of the corpus for that long, and
// `fuzz_plan --verdicts` prints what the readers say of each file named on its input, for tests/native/differential.py.

#include "kvtuner-plan.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

// upstream's reader logs every file that it refuses
static const bool is_silent = [] {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return true;
}();

static void check_message(const std::string & message) {
    if (message.empty() || message.find('\n') != std::string::npos || message.size() > 1024) {
        fprintf(stderr, "no message of one line: %s\n", message.c_str());
        abort();
    }
}

static void check_plan(const kvtuner_plan_ptr & plan) {
    if (plan && (plan->type_k.empty() || plan->type_k.size() != plan->type_v.size())) {
        fprintf(stderr, "a plan of %zu K and %zu V types\n", plan->type_k.size(), plan->type_v.size());
        abort();
    }
}

static void try_json(const std::string & text) {
    try {
        check_plan(kvtuner_plan_from_json(text));
    } catch (const std::runtime_error & err) {
        check_message(err.what());
    }
}

static void try_gguf(const uint8_t * data, size_t size) {
    FILE * file = fmemopen((void *)data, size, "rb");
    if (!file) {
        return;
    }
    gguf_context * metadata = gguf_init_from_file_ptr(file, { /*.no_alloc =*/true, /*.ctx =*/nullptr });
    fclose(file);
    if (!metadata) {
        return;
    }
    kvtuner_gguf_has_plan(metadata);
    try {
        check_plan(kvtuner_plan_from_gguf(metadata, "llama", { 2, 2, 0, 2 }));
    } catch (const std::runtime_error & err) {
        check_message(err.what());
    }
    gguf_free(metadata);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size > 4 && data[0] == 'G') {
        try_gguf(data, size);
    } else if (size > 0) {
        try_json(std::string((const char *)data, size));
    }
    return 0;
}

#ifndef KVTUNER_LIBFUZZER

using bytes = std::vector<uint8_t>;

static std::vector<bytes> read_corpus(const char * folder) {
    std::vector<bytes> corpus;
    for (const auto & entry : std::filesystem::directory_iterator(folder)) {
        std::ifstream file(entry.path(), std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return corpus;
}

static void mutate(bytes & input, const std::vector<bytes> & corpus, std::mt19937 & random) {
    const size_t at = input.empty() ? 0 : random() % input.size();
    switch (input.empty() ? 4 : random() % 6) {
        case 0:
            input[at] = (uint8_t)random();
            break;
        case 1:
            input[at] ^= 1u << random() % 8;
            break;
        case 2:
            input.erase(input.begin() + at,
                        input.begin() + at + std::min<size_t>(1 + random() % 16, input.size() - at));
            break;
        case 3:  // lengths and counts
            for (size_t i = at; i < std::min(at + 8, input.size()); ++i) {
                input[i] = random() % 2 ? 0xff : 0x00;
            }
            break;
        case 4:
            input.insert(input.begin() + at, 1 + random() % 16, (uint8_t)random());
            break;
        default: {
            const bytes & other = corpus[random() % corpus.size()];
            const size_t from = other.empty() ? 0 : random() % other.size();
            const size_t n = std::min<size_t>(other.size() - from, random() % 64);
            input.insert(input.begin() + at, other.begin() + from, other.begin() + from + n);
        }
    }
}

static std::string verdict(const kvtuner_plan_ptr & plan) {
    return plan ? "plan " + kvtuner_plan_fingerprint(*plan) : "none";
}

static std::string verdict_of_gguf(const char * path) {
    gguf_context * metadata = gguf_init_from_file(path, { /*.no_alloc =*/true, /*.ctx =*/nullptr });
    if (!metadata) {
        return "unreadable";
    }
    const std::unique_ptr<gguf_context, void (*)(gguf_context *)> owner(metadata, gguf_free);
    const uint64_t start = gguf_get_data_offset(metadata), end = std::filesystem::file_size(path);
    for (int64_t i = 0; i < gguf_get_n_tensors(metadata); ++i) {  // as llama_model_loader
        const uint64_t offset = start + gguf_get_tensor_offset(metadata, i), size = gguf_get_tensor_size(metadata, i);
        if (offset + size < offset || offset + size > end) {
            return "unreadable";
        }
    }
    const std::vector<uint32_t> sizes = { 64, 64, 0, 64 };
    return verdict(kvtuner_plan_from_gguf(metadata, "llama", sizes));
}

static std::string verdict_of(const std::string & path) {
    try {
        if (path.size() > 5 && path.substr(path.size() - 5) == ".gguf") {
            return verdict_of_gguf(path.c_str());
        }
        std::ifstream file(path, std::ios::binary);
        return verdict(kvtuner_plan_from_json({ std::istreambuf_iterator<char>(file), {} }));
    } catch (const std::runtime_error & err) {
        check_message(err.what());
        return std::string("error ") + err.what();
    }
}

static int print_verdicts() {
    for (std::string path; std::getline(std::cin, path);) {
        printf("%s\n", verdict_of(path).c_str());
    }
    return 0;
}

int main(int argc, char ** argv) {
    if (argc == 2 && std::string(argv[1]) == "--verdicts") {
        return print_verdicts();
    }
    if (argc != 4) {
        fprintf(stderr, "usage: %s SECONDS SEED CORPUS_FOLDER | --verdicts < PATHS\n", argv[0]);
        return 2;
    }
    const std::vector<bytes> corpus = read_corpus(argv[3]);
    std::mt19937 random((uint32_t)atoi(argv[2]));
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(atof(argv[1]));
    for (const bytes & input : corpus) {
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    size_t runs = corpus.size();
    while (!corpus.empty() && std::chrono::steady_clock::now() < end) {
        bytes input = corpus[random() % corpus.size()];
        for (size_t i = 0, n = 1 + random() % 8; i < n; ++i) {
            mutate(input, corpus, random);
        }
        LLVMFuzzerTestOneInput(input.data(), input.size());
        ++runs;
    }
    printf("%zu runs, no finding\n", runs);
    return corpus.empty();
}

#endif
