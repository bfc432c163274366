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
from tests.native.archs import write_models

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


def test_copies_from_blocks_to_blocks_are_left_to_others(program: Path) -> None:
    """As upstream leaves those of its own types."""
    cases = r"type_src=(q[23]_nl|q8_0),type_dst=(q[23]_nl|q8_0),"
    command = [program, "test", "-b", "MTL0", "-o", "CPY", "-p", cases]
    variables = os.environ | environment(program.resolve().parent, "forward")
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False)
    asked = [line for line in done.stdout.splitlines() if "CPY(" in line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {kind for line in asked for kind in re.findall("type_src=([^,]*)", line)} == {"q2_nl", "q3_nl", "q8_0"}
    assert all("not supported [MTL0]" in line for line in asked)


def run_ours(program: Path, name: str, *arguments: str | Path, **variables: str) -> tuple[int, str]:
    """The exit status and words of one of our programs."""
    emulated = environment(program.resolve().parent, variables.pop("order", "forward"))
    command = [installed_folder() / f"kvtuner-{name}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | emulated | variables,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


LAST_FIRST = {"KVTUNER_METAL_LAST_FIRST": "1"}


@pytest.mark.metal_all
@pytest.mark.parametrize("variables", [{}, LAST_FIRST], ids=["in order", "last first"])
def test_writes_of_a_plan_store_what_their_steps_store(program: Path, variables: dict[str, str]) -> None:
    status, words = run_ours(program, "test-writes", "MTL0", **variables)
    assert (status, "\n0 failures\n" in words) == (0, True), words[-4000:]


@pytest.mark.metal_all
@pytest.mark.parametrize(
    ("seed", "variables"),
    [(1, {}), (2, {"order": "reverse"}), (3, {"order": "random"}), (4, LAST_FIRST)],
    ids=["forward", "reverse", "random", "last first"],
)
def test_attention_of_a_plan(program: Path, seed: int, variables: dict[str, str]) -> None:
    """All pairs, exact rows, centers, streams, few queries and many, against a plain loop in float64."""
    status, words = run_ours(program, "test-gpu-attention", "MTL0", "1", str(seed), "small", **variables)
    assert status == 0, words
    assert ", 0 not supported, 0 failures" in words


@pytest.mark.metal_all
@pytest.mark.parametrize("kernel", ["kvtuner_add_parts", "kernel_flash_attn_ext_blk"])
def test_a_missing_barrier_of_attention_is_seen(program: Path, kernel: str) -> None:
    variables = LAST_FIRST | {"KVTUNER_METAL_NO_BARRIER": kernel}
    status, words = run_ours(program, "test-gpu-attention", "MTL0", "1", "1", "small", **variables)
    assert (status, "FAIL error" in words) == (1, True), words


LOW = ("--plan", "q3_nl/q2_nl,iq4_nl/q4_0")


@pytest.mark.metal_all
@pytest.mark.parametrize(
    ("plans", "variables"),
    [
        ((), {}),
        (LOW, {"order": "reverse", "KVTUNER_METAL_NODES": "9", "KVTUNER_METAL_THREADS": "2"}),
        (LOW, {"order": "random", "GGML_METAL_FUSION_DISABLE": "1", **LAST_FIRST}),
    ],
    ids=["all plans, forward", "reverse, two encoders", "random, no fusion, last first"],
)
def test_what_a_cache_goes_through(
    program: Path, tmp_path: Path, plans: tuple[str, ...], variables: dict[str, str]
) -> None:
    """Prefill, decoding, context shift, self-extend, copies of sequences, saved states, against the CPU."""
    model = write_models(tmp_path) / "llama-dense.gguf"
    show = {"KVTUNER_METAL_SHOW": "1"}
    status, words = run_ours(program, "test-archs", *plans, model, **variables, **show)
    reports = [line for line in words.splitlines() if ": NMSE " in line and "floor" not in line]
    assert (status, len(reports)) == (0, 1 if plans else 8), words[-4000:]
    kernels = {line.removeprefix("run ") for line in words.splitlines() if line.startswith("run ")}
    assert {"kvtuner_copy_from", "kvtuner_copy_to", "kvtuner_halves", "kvtuner_attention"} <= kernels


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


@pytest.mark.parametrize(("operation", "kernel"), [("GET_ROWS", "kvtuner_get_rows"), ("CPY", "kvtuner_copy_from")])
def test_no_kernel_begins_with_more_threads_than_it_may_have(program: Path, operation: str, kernel: str) -> None:
    command = [program, "test", "-b", "MTL0", "-o", operation, "-p", r"type(_src)?=q2_nl,.*"]
    emulated = environment(program.resolve().parent, "forward") | {"KVTUNER_METAL_FEW_THREADS": kernel}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | emulated, capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert f"MTL0 allows 32 threads in a threadgroup of {kernel}, not 128" in done.stderr
