"""A model's logits over the cache of a plan, through the emulated back end and by the CPU.

The CPU multiplies in both, so that keys, values and attention alone differ. Weights are floats: with quantized ones
activations are rounded to 8 bits, which makes more of the last bit of a sum than a cache does.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import find_tool
from tests.metal.library import ROOT, WHEEL, compiler
from tests.metal.model_runs import TEXT, Run, difference, run
from tests.tiny import N_HEAD_KV, write_tiny

pytestmark = pytest.mark.native

HEAD_SIZE = 64
SHORT = ("--text", TEXT[:72])  # a token is a byte; many queries at first, and two blocks of positions


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    if WHEEL in (compiler() or []):
        pytest.skip(f"a back end of {WHEEL} has another C++ library than ggml")


class Tiny(NamedTuple):
    """A model of two layers, a plan, and runs on the CPU without and with it, and emulated with it."""

    model: Path
    plan: Path
    plain: Run
    on_cpu: Run
    emulated: Run

    def again(self, folder: Path, **variables: str) -> Run:
        return run(self.model, self.plan, folder, *SHORT, on_device=True, **variables)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """With exact ends, and with a center for each block of positions in the first layer."""
    folder = tmp_path_factory.mktemp("tiny")
    model, plan = write_tiny(folder / "tiny.gguf", "llama", head_dim=HEAD_SIZE), folder / "plan.json"
    center = np.random.default_rng(5).standard_normal(N_HEAD_KV * HEAD_SIZE)
    pairs = (Pair("q3_nl", "q2_nl"), Pair("iq4_nl", "f16"))
    Plan(pairs, ends=Ends(4, 8), centers=Centers.from_arrays([center, None], span=64)).save(plan)
    plain = run(model, "none", folder, *SHORT, on_device=False)
    on_cpu, emulated = (run(model, plan, folder, *SHORT, on_device=on_device) for on_device in (False, True))
    return Tiny(model, plan, plain, on_cpu, emulated)


def test_a_tiny_model_with_a_plan(tiny: Tiny) -> None:
    wanted = {"kvtuner_write", "kvtuner_attention", "kvtuner_add_parts", "kvtuner_halves", "kvtuner_masks"}
    assert wanted <= tiny.emulated.kernels
    assert difference(tiny.on_cpu, tiny.emulated) < 0.1 * difference(tiny.plain, tiny.on_cpu)


def test_all_its_pipelines_are_made_with_the_context(tiny: Tiny) -> None:
    """Of each side a write, and where a rotation is longer than what is written without, two; of each layer attention
    of few tokens and of many for 2, 4 and 8 columns; the sum of parts; copies for many queries of four types, one of
    them f16 as exact rows are, and of those with centers; what shifts keys."""
    assert tiny.emulated.later == ()
    kinds = Counter(name.split("_")[1] for name in tiny.emulated.with_context)
    assert kinds == {"write": 6, "attention": 12, "add": 3, "halves": 6, "masks": 1, "copy": 3}


PARTS: dict[str, Mapping[str, str]] = {
    "two threads, encoders of a few nodes": {"KVTUNER_METAL_NODES": "7", "KVTUNER_METAL_THREADS": "2"},
    "the last first": {"KVTUNER_METAL_LAST_FIRST": "1"},
}


@pytest.mark.parametrize("how", PARTS)
def test_encoders_and_order_change_nothing(tiny: Tiny, tmp_path: Path, how: str) -> None:
    assert np.array_equal(tiny.again(tmp_path, **PARTS[how]).logits, tiny.emulated.logits)


@pytest.mark.parametrize("kernel", ["kvtuner_add_parts", "kernel_flash_attn_ext_blk"])
def test_a_missing_barrier_before_a_kernel_is_seen(tiny: Tiny, tmp_path: Path, kernel: str) -> None:
    """That of our attention before the sum of parts, and that behind our copies."""
    broken = tiny.again(tmp_path, KVTUNER_METAL_LAST_FIRST="1", KVTUNER_METAL_NO_BARRIER=kernel)
    assert not np.array_equal(broken.logits, tiny.emulated.logits)


@pytest.mark.metal_all
def test_without_fusion(tiny: Tiny, tmp_path: Path) -> None:
    """Rotations, centers and writes are steps of their own then."""
    alone = tiny.again(tmp_path, GGML_METAL_FUSION_DISABLE="1")
    assert "kvtuner_attention" in alone.kernels
    assert difference(tiny.on_cpu, alone) < 0.1 * difference(tiny.plain, tiny.on_cpu)
    assert alone.later == ()


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
