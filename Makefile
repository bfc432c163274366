# `make demo` and `make test` each do all their set-up on a fresh machine. `make help` lists the rest.
PYTHON  ?= python3
TORCH   ?= torch==2.13.0
BACKEND ?= cpu
CPU     ?= native
SDIST   ?=
JOBS    ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN     := .venv/bin
OTHER   := $(if $(filter-out native,$(CPU)),-$(CPU))
BUILD   := build/$(BACKEND)$(OTHER)
STOCK   := build/stock$(OTHER)
CPP     := $(foreach end,h c cpp cu cuh,$(wildcard cpp/*.$(end) cpp/*/*.$(end) cpp/*/*/*.$(end))) $(wildcard tools/*.cpp) \
	$(foreach end,h cpp,$(wildcard tests/metal/*/*.$(end)))

.PHONY: help setup build stock browser demo docs docs-pages test test-quick test-large test-upstream test-sanitize test-arm test-avx2 test-variants test-metal fuzz soak lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.venv/.setup: Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "cmake>=3.21,<4" ninja "scikit-build-core[pyproject]>=0.10" "setuptools>=68"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

setup: .venv/.setup ## make the environment .venv with the build tools and torch (TORCH=requirement)

build/src/.git/kvtuner-stamp: $(wildcard patches/*) $(wildcard patches/*/*) .venv/.setup
	$(BIN)/python tools/llama_patches.py prepare $(addprefix --sdist ,$(SDIST))
	touch $@

NATIVE := build/src/.git/kvtuner-stamp CMakeLists.txt cpp/cpu.cmake \
	$(wildcard cpp/*) $(wildcard cpp/*/*) $(wildcard cpp/*/*/*)

# one build is installed at a time: another one's mark goes
$(BUILD)/.built: $(NATIVE) tools/build_native.py tools/build_folders.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/build_native.py --backend $(BACKEND) --cpu $(CPU) --jobs $(JOBS)
	rm -f $(foreach backend,cpu cuda metal vulkan,build/$(backend)/.built build/$(backend)-*/.built)
	touch $@

.venv/.package: $(BUILD)/.built pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[tune,server,dev]'
	touch $@

build: .venv/.package ## compile llama.cpp and install everything (BACKEND=cpu|cuda|metal|vulkan, CPU=native|all|haswell|..., SDIST=files)

$(STOCK)/.built: build/src/.git/kvtuner-stamp cpp/cpu.cmake tools/build_stock.py tools/build_folders.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/build_stock.py --cpu $(CPU) --jobs $(JOBS)
	touch $@

stock: $(STOCK)/.built ## compile the unpatched library, which tests compare with

browser: ## install Debian's Chromium for the tests of HTML pages, where this may (else they are skipped)
	@command -v chromium > /dev/null || { apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium; } \
		|| echo "no browser here, so the tests of HTML pages are skipped: apt install chromium"

demo: build ## tune, annotate, measure and run SmolLM2-135M
	$(BIN)/kvtuner-gguf demo

COUNTER := $(if $(filter x86_64 amd64,$(shell uname -m)),build/cpu-haswell/kvtuner-count-instructions)

build/cpu-haswell/kvtuner-count-instructions: $(NATIVE) | .venv/.package
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/cpu-haswell -G Ninja -Wno-dev --log-level=WARNING \
		-DKVTUNER_CPU=haswell
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/cpu-haswell --parallel $(JOBS) --target $(notdir $@)
	touch $@

test: build stock browser $(COUNTER) ## all tests that need neither a GPU nor a large model
	$(BIN)/ruff check kvtuner_gguf tools tests
	$(BIN)/ty check --no-progress
	$(BIN)/python -m pytest -m "not large and not gpu and not variants and not metal_all"

test-quick: build $(COUNTER) ## the tests that need no model
	$(BIN)/python -m pytest -m "not large and not gpu and not model and not variants and not metal_all" -q

test-large: build stock ## the tests on the 1.5B model, about 1.1 GB to fetch
	$(BIN)/python -m pytest -m large

.venv/.upstream-tests: .venv/.package
	$(BIN)/python -m pip install --quiet --editable '.[upstream-tests]'
	touch $@

test-upstream: build .venv/.upstream-tests ## upstream's own tests on the unpatched and the patched build, about an hour
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/upstream_tests.py --backend $(BACKEND) --jobs $(JOBS)

KERNEL_TESTS := kvtuner-test-decode kvtuner-test-mask kvtuner-test-lowbit kvtuner-test-attention kvtuner-test-writes kvtuner-test-quantize-fns

FUZZ_SECONDS ?= 600
SANITIZE     := build/sanitize
UBSAN        := halt_on_error=1:print_stacktrace=1:suppressions=$(CURDIR)/cpp/test/ubsan.supp

$(SANITIZE)/build.ninja: build/src/.git/kvtuner-stamp CMakeLists.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B $(SANITIZE) -G Ninja -Wno-dev --log-level=WARNING \
		-DKVTUNER_SANITIZE=ON -DKVTUNER_TOOLS=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo

fuzz: build $(SANITIZE)/build.ninja ## hostile plans under the sanitizers, and both readers against each other (FUZZ_SECONDS=600)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(SANITIZE) --target kvtuner-fuzz --parallel $(JOBS)
	$(BIN)/python tests/native/corpus.py $(SANITIZE)/corpus
	$(SANITIZE)/kvtuner-fuzz $(FUZZ_SECONDS) $$(date +%s) $(SANITIZE)/corpus
	$(BIN)/python tests/native/differential.py $(SANITIZE)/kvtuner-fuzz $(FUZZ_SECONDS) $$(date +%s)

test-sanitize: build $(SANITIZE)/build.ninja ## all architectures, CPU kernels and a minute of fuzz under the sanitizers
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(SANITIZE) --parallel $(JOBS) \
		--target kvtuner-test-archs $(KERNEL_TESTS)
	PYTHONPATH=tools $(BIN)/python tests/native/archs.py $(SANITIZE)/archs
	for test in $(KERNEL_TESTS); do UBSAN_OPTIONS=$(UBSAN) $(SANITIZE)/$$test || exit 1; done
	UBSAN_OPTIONS=$(UBSAN) $(SANITIZE)/kvtuner-test-archs $(SANITIZE)/archs/*.gguf
	$(MAKE) fuzz FUZZ_SECONDS=60

ARM      := build/arm
ARM_ROOT ?= /usr/aarch64-linux-gnu
ARM_ARCH ?= armv8.2-a+dotprod+fp16
QEMU     ?= qemu-aarch64-static

# in folder $(1), compiled with the options $(2), run by $(3)
define run_kernel_tests
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B $(1) -G Ninja -Wno-dev --log-level=WARNING $(2)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(1) --parallel $(JOBS) --target $(KERNEL_TESTS)
	for test in $(KERNEL_TESTS); do $(3) $(1)/$$test || exit 1; done
endef

test-arm: build ## the kernels and upstream's quantizers on 64-bit Arm: needs g++-aarch64-linux-gnu, qemu-aarch64
	$(call run_kernel_tests,$(ARM),-DKVTUNER_TOOLS=OFF -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DKVTUNER_CPU=$(ARM_ARCH),$(QEMU) -L $(ARM_ROOT))

test-avx2: build ## the same on x86 without AVX-512
	$(call run_kernel_tests,build/cpu-haswell,-DKVTUNER_CPU=haswell,)

test-variants: ## each CPU variant that runs here, in the build of all of them, which it leaves installed
	$(MAKE) build CPU=all
	$(BIN)/python -m pytest -m variants

test-metal: build ## all cases of our Metal kernels on the emulator, about an hour and a half; needs clang++-19
	$(BIN)/python -m pytest tests/metal

soak: build ## load a server with a mixed plan, compare its answers with those of each request alone
	$(BIN)/python tools/soak_server.py


docs-pages: build ## write the pages that are made of the commands' help and of configs/
	$(BIN)/python tools/command_pages.py
	$(BIN)/python tools/gallery_page.py

.venv/.docs: .venv/.package
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: .venv/.docs ## build the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file tools/mkdocs.yml

lint: build ## check the style of Python and C++, and the types of the package
	$(BIN)/ruff check kvtuner_gguf tools tests
	$(BIN)/ruff format --check kvtuner_gguf tools tests
	$(BIN)/ty check --no-progress
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: build ## put Python and C++ into their style
	$(BIN)/ruff check --fix kvtuner_gguf tools tests
	$(BIN)/ruff format kvtuner_gguf tools tests
	$(BIN)/clang-format -i $(CPP)

clean: ## remove the environment and everything built
	rm -rf .venv build out
