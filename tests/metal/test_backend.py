"""Upstream's own cases through its Metal host code and the emulator."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from build_folders import installed_folder

from kvtuner_gguf.server.llama_server import find_tool
from tests.metal.backend import environment, function_of_device, supported_operations
from tests.metal.library import ROOT, WHEEL, compiler

pytestmark = pytest.mark.native

NUMBER = re.compile(r"(\d+)/(\d+) tests passed")
ATTENTION = (
    "hsk={size},hsv={size},nh=4,nr23=.1,1.,kv=512,nb={rows},mask=1,sinks=1,max_bias=8.*type_K={kind},.*permute=.0,1"
)


@pytest.fixture(scope="module")
def program() -> Path:
    if WHEEL in (compiler() or []):
        pytest.skip(f"a back end of {WHEEL} has another C++ library than ggml")
    return find_tool("test-backend-ops")


def passed(program: Path, order: str, operation: str, cases: str) -> int:
    """How many of upstream's ``cases`` pass, which is all of them."""
    command = [program, "test", "-b", "MTL0", "-o", operation, "-p", cases]
    variables = os.environ | environment(program.resolve().parent, order)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ok, n_cases = NUMBER.findall(done.stdout)[-1]
    assert ok == n_cases, done.stdout
    return int(ok)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_attention(program: Path, kind: str, rows: int, order: str) -> None:
    assert passed(program, order, "FLASH_ATTN_EXT", ATTENTION.format(size=64, rows=rows, kind=kind)) >= 1


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_writes(program: Path, order: str) -> None:
    cases = r"type_src=f32,type_dst=(f16|q8_0|q4_0),type_idx=i64,ne=.(96|33),.*r=[12]"
    assert passed(program, order, "SET_ROWS", cases) >= 12


ROWS = {
    "SET_ROWS": (r"type_src=f32,type_dst=q[23]_nl,.*ne=.(192|256),.*r=[12],v=0", 8),
    "GET_ROWS": (r"type=(iq4_nl|q[23]_nl),.*be1=1,", 12),
    "CPY": (r"type_src=(f32,type_dst=(iq4_nl|q[23]_nl)|(iq4_nl|q[23]_nl),type_dst=f32),", 12),
}


@pytest.mark.parametrize("operation", ROWS)
def test_rows_that_upstreams_kernels_do_not_know(program: Path, operation: str) -> None:
    cases, least = ROWS[operation]
    assert passed(program, "reverse", operation, cases) >= least


@pytest.mark.metal_all
def test_writes_of_a_plan_store_what_their_steps_store(program: Path) -> None:
    variables = os.environ | environment(program.resolve().parent, "forward")
    command = [installed_folder() / "kvtuner-test-writes", "MTL0"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, timeout=3000, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, b"0 failures"), done.stdout[-4000:]


@pytest.mark.metal_all
@pytest.mark.parametrize(("order", "seed"), [("forward", 1), ("reverse", 2), ("random", 3)])
def test_attention_of_a_plan(program: Path, order: str, seed: int) -> None:
    """All pairs, exact rows, centers, streams, few queries and many, against a plain loop in float64."""
    of_devices = installed_folder() / "kvtuner-test-gpu-attention"
    variables = os.environ | environment(program.resolve().parent, order)
    command = [of_devices, "MTL0", "1", str(seed), "small"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 not supported, 0 failures" in done.stdout


def test_what_is_supported_is_upstreams_own_word() -> None:
    text = supported_operations()
    assert text.startswith("static bool ggml_metal_supports_mul_mat_op(")
    assert "case GGML_OP_FLASH_ATTN_EXT:" in text
    assert text.count("{") == text.count("}")


def test_a_text_that_compiles_with_warnings_makes_a_library() -> None:
    """With a library, Metal's error tells of warnings, of which functions that no kernel uses make many."""
    function = function_of_device("ggml_metal_library_t ggml_metal_library_init_from_source(")
    assert "newLibraryWithSource" in function
    assert "if (!library)" in function
    assert "if (error)" not in function
