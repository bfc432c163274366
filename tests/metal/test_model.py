"""A model's logits over the cache of a plan, through the emulated back end and by the CPU.

The CPU multiplies in both, so that keys, values and attention alone differ. Weights are floats: with quantized ones
activations are rounded to 8 bits, which makes more of the last bit of a sum than a cache does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import find_tool
from tests.metal.backend import environment
from tests.metal.library import ROOT, WHEEL, compiler
from tests.tiny import write_tiny

pytestmark = pytest.mark.native

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
TEXT = (
    "The Eiffel Tower was built for the World's Fair of 1889 and stands in Paris, the capital of France, on the bank "
    "of the river Seine, where"
)


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    if WHEEL in (compiler() or []):
        pytest.skip(f"a back end of {WHEEL} has another C++ library than ggml")


@dataclass(frozen=True)
class Run:
    """The logits [8, vocabulary] of the last tokens of a text, and the kernels that ran."""

    logits: np.ndarray
    kernels: frozenset[str]


def run(model: Path, plan: Path | str, folder: Path, *options: str, on_device: bool, **variables: str) -> Run:
    made = folder / "logits.npy"
    command = [sys.executable, "-m", "tests.metal.decode_model", model, made, "--plan", plan, "--text", TEXT]
    more = environment(LIBRARIES.resolve(), "forward") | {"KVTUNER_METAL_SHOW": "1"} | variables if on_device else {}
    where = ["--weights-on-host", *(["--device"] if on_device else []), *options]
    done = subprocess.run(
        [*map(str, command), *where], cwd=ROOT, env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = frozenset(line.removeprefix("run ") for line in done.stderr.splitlines() if line.startswith("run "))
    return Run(np.load(made), kernels)


def difference(a: Run, b: Run) -> float:
    """Of logits, squared, over the squares of the first."""
    return float(((a.logits - b.logits) ** 2).sum() / (a.logits**2).sum())


def test_a_tiny_model_with_a_plan(tmp_path: Path) -> None:
    model, plan = write_tiny(tmp_path / "tiny.gguf", "llama"), tmp_path / "plan.json"
    Plan((Pair("q3_nl", "q2_nl"), Pair("iq4_nl", "q4_0"))).save(plan)
    plain = run(model, "none", tmp_path, on_device=False)
    on_cpu = run(model, plan, tmp_path, on_device=False)
    emulated = run(model, plan, tmp_path, on_device=True)
    assert {"kvtuner_write", "kvtuner_attention", "kvtuner_halves"} <= emulated.kernels
    assert difference(on_cpu, emulated) < 0.1 * difference(plain, on_cpu)
    in_parts = run(model, plan, tmp_path, on_device=True, KVTUNER_METAL_NODES="7")
    assert np.array_equal(in_parts.logits, emulated.logits)
    last_first = run(model, plan, tmp_path, on_device=True, KVTUNER_METAL_LAST_FIRST="1")
    assert np.array_equal(last_first.logits, emulated.logits)


@pytest.mark.parametrize("refused", ["KVTUNER_TO block_q2_nl", "kernel void kvtuner_halves"])
def test_a_plan_that_the_compiler_refuses_is_refused_at_load(tmp_path: Path, refused: str) -> None:
    model, plan = write_tiny(tmp_path / "tiny.gguf", "llama"), tmp_path / "plan.json"
    Plan((Pair("f16", "f16"), Pair("q8_0", "q2_nl"))).save(plan)
    command = [sys.executable, "-m", "tests.metal.decode_model", model, tmp_path / "x.npy", "--plan", plan, "--device"]
    more = environment(LIBRARIES.resolve(), "forward") | {"KVTUNER_METAL_REFUSE": refused}
    done = subprocess.run(
        [*map(str, command), "--text", TEXT],
        cwd=ROOT,
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "layer 1: the compiler of MTL0 refuses the kernels of q8_0/q2_nl: use other types there" in done.stderr


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with weights of 32 bits."""
    made = tmp_path_factory.mktemp("model") / "smollm2-f32.gguf"
    command = [find_tool("llama-quantize"), "--allow-requantize", fetch_model("smollm2-135m"), made, "F32"]
    subprocess.run(command, capture_output=True, check=True)
    return made


@pytest.mark.model
@pytest.mark.metal_all
def test_smollm2_with_a_plan(smollm2: Path, tmp_path: Path) -> None:
    plan = ROOT / "configs" / "smollm2-135m-4.5.json"
    plain = run(smollm2, "none", tmp_path, on_device=False)
    assert difference(plain, run(smollm2, "none", tmp_path, on_device=True)) < 1e-5

    on_cpu = run(smollm2, plan, tmp_path, on_device=False)
    emulated = run(smollm2, plan, tmp_path, on_device=True)
    assert {"kvtuner_write", "kvtuner_attention"} <= emulated.kernels
    assert difference(on_cpu, emulated) < 1e-4
    assert (on_cpu.logits.argmax(1) == emulated.logits.argmax(1)).all()

    # without exact ends a change of the last bit of a key may take another code in 30 layers one after the other
    on_cpu = run(smollm2, plan, tmp_path, "--no-ends", on_device=False)
    emulated = run(smollm2, plan, tmp_path, "--no-ends", on_device=True)
    assert difference(on_cpu, emulated) < difference(plain, on_cpu)
