"""Attention over quantized caches on the CPU: upstream's operator tests, the same bits for any threads and batches."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from build_folders import build_folder, installed_folder
from gguf import GGMLQuantizationType

from kvtuner_gguf.engine.llama.native import open_model
from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import find_tool

pytestmark = pytest.mark.native

N_LAYER = 30
NAMES = ("q8_0/q4_0", "q4_0/q2_nl", "f16/q8_0", "q3_nl/q5_1", "iq4_nl/q8_0", "q2_nl/bf16")


# upstream's cases of K = V that do not take minutes
CASES = r"kv=113,nb=(1|3|32),"
HEADS = (64, 128, 192, 256)
TYPES = ("f16", "q8_0", "q4_0", "q3_nl", "q2_nl")


def test_upstreams_cases_agree_with_its_reference(tmp_path: Path) -> None:
    """All pairs, head sizes 40 to 576, masks, ALiBi, sinks, soft-capping: normalized error below 5e-4."""
    file = tmp_path / "cases"
    pairs = [_case(k, v, head, n_queries) for k in TYPES for v in TYPES for head in HEADS for n_queries in (1, 35)]
    file.write_text("".join(pairs))
    n_pairs = _n_passed("--test-file", file)
    assert n_pairs == len(pairs)
    assert n_pairs + _n_passed("-p", CASES) > 900


@pytest.mark.gpu
def test_cuda_agrees_with_the_reference_on_our_types(tmp_path: Path) -> None:
    """Without a plan they are converted to f16 first."""
    file = tmp_path / "cases"
    pairs = [(k, v) for k in TYPES for v in TYPES if "_nl" in k + v]
    file.write_text("".join(_case(k, v, head, n) for k, v in pairs for head in (64, 128, 256) for n in (1, 2, 35)))
    program = build_folder("cuda") / "bin" / "test-backend-ops"
    assert _n_passed("--test-file", file, program=program, backend="CUDA0") == 9 * len(pairs)


def test_cuda_kernels_on_the_cpu_agree_with_a_plain_loop() -> None:
    """All pairs that they take, and every way that they share work out."""
    done = subprocess.run([installed_folder() / "kvtuner-test-cuda-attention"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 failures"), done.stdout + done.stderr


@pytest.mark.gpu
def test_cuda_agrees_with_a_plain_loop() -> None:
    """All pairs, exact rows, centers, streams, and up to 33 queries."""
    program = build_folder("cuda") / "kvtuner-test-gpu-attention"
    done = subprocess.run([program, "CUDA0", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ", 0 not supported, 0 failures" in done.stdout


def test_the_program_for_devices_tests_the_cpu() -> None:
    program = installed_folder() / "kvtuner-test-gpu-attention"
    done = subprocess.run([program, "CPU", "1", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ", 0 not supported, 0 failures" in done.stdout


def _n_passed(*arguments: object, program: Path | None = None, backend: str = "CPU") -> int:
    """How many of upstream's operator tests passed; fails where one did not."""
    program = program or find_tool("test-backend-ops")
    command = [program, "test", "-o", "FLASH_ATTN_EXT", "-b", backend, *map(str, arguments)]
    env = os.environ | {"KVTUNER_ATTENTION": "all"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, [line for line in done.stdout.splitlines() if "FAIL" in line][:10]
    passed, n_cases = re.search(r"(\d+)/(\d+) tests passed", done.stdout).groups()
    assert passed == n_cases
    return int(n_cases)


def _case(type_k: str, type_v: str, head: int, n_queries: int) -> str:
    """A line of upstream's list of tests: 512 tokens, 8 heads on 2 of the cache, a mask.

    Its fields are those of ``make_test_cases_from_file`` in ``tests/test-backend-ops.cpp``: operator, type and size of
    the output, operator parameters (scale first), sources with type, sizes and strides.
    """
    f32, f16 = GGMLQuantizationType.F32.value, GGMLQuantizationType.F16.value
    numbers = [cache_type(name).ggml_type for name in (type_k, type_v)]
    scale = struct.unpack("i", struct.pack("f", head**-0.5))[0]
    sources = [_source(f32, head, n_queries, 8), *(_source(number, head, 512, 2) for number in numbers)]
    sources.append(_source(f16, 512, n_queries, 1))
    output = [_operator("FLASH_ATTN_EXT"), f32, head, 8, n_queries, 1]
    fields = [*output, 1, scale, len(sources), *(field for source in sources for field in source)]
    return " ".join(map(str, fields)) + f" {type_k}/{type_v}\n"


def _source(ggml_type: int, *sizes: int) -> list[int]:
    """Type, four sizes and four strides in bytes of a tensor without gaps."""
    sizes = (*sizes, 1, 1, 1, 1)[:4]
    libggml = llama_cpp._ggml.libggml
    libggml.ggml_row_size.restype = ctypes.c_size_t
    row = libggml.ggml_row_size(ggml_type, ctypes.c_int64(sizes[0]))
    size = libggml.ggml_row_size(ggml_type, ctypes.c_int64(libggml.ggml_blck_size(ggml_type)))
    return [ggml_type, *sizes, size, row, row * sizes[1], row * sizes[1] * sizes[2]]


def _operator(name: str) -> int:
    """The number of an operator of ggml."""
    op_name = llama_cpp._ggml.libggml.ggml_op_name
    op_name.restype = ctypes.c_char_p
    return next(op for op in range(200) if op_name(op) == name.encode())


def test_every_pair_against_float64() -> None:
    """And the same bits for 1, 2, 3 and 5 threads, whose blocks and tiles differ."""
    test = installed_folder() / "kvtuner-test-attention"
    done = subprocess.run([test], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^2[0-9]{3} cases, worst normalized error \S+, 0 failures$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def logits() -> Callable[[int, int], np.ndarray]:
    plan = Plan(tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER)))
    text = fetch_text("encyclopedia").read_text()[:4000]

    def run(n_threads: int, n_together: int) -> np.ndarray:
        """The logits of 300 tokens, decoded so many at once."""
        with open_model(fetch_model("smollm2-135m"), n_threads) as model, model.context(plan, 512, 300) as context:
            tokens = np.array(model.tokenize(text)[:300], np.int32)
            parts = [tokens[i : i + n_together] for i in range(0, len(tokens), n_together)]
            return np.concatenate([context.decode(x, i * n_together, True).copy() for i, x in enumerate(parts)])

    return run


@pytest.mark.model
@pytest.mark.parametrize(("n_threads", "n_together"), [(2, 300), (3, 300), (1, 1), (3, 1), (2, 7), (3, 40)])
def test_neither_threads_nor_batches_change_a_bit(
    n_threads: int, n_together: int, logits: Callable[[int, int], np.ndarray]
) -> None:
    assert np.array_equal(logits(n_threads, n_together), logits(1, 300))
