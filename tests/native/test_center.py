"""Centering in the built library: exact in an f16 cache, a gain in a quantized one, refused where it is not exact."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Context, Model, open_model
from kvtuner_gguf.evaluation.divergence import Tally, score
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import find_tool
from tests.native.test_shift import shift
from tests.native.test_state import follow, load, make_state
from tests.tiny import write_tiny

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER, N_VALUES = 30, 3 * 64
RNG = np.random.default_rng(7)
# any vector is exact; these are as large as keys are
CENTERS = Centers.from_arrays([3 * RNG.standard_normal(N_VALUES) for _ in range(N_LAYER)])
NAMES = ("f16", "q8_0/q4_0", "q5_1/f16")
MIXED = Plan(tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER)), centers=CENTERS)


def logits(context: Context, tokens: np.ndarray) -> np.ndarray:
    """A prefill and single tokens after it."""
    context.clear()
    parts = [context.decode(tokens[:120], 0, want_logits=True).copy()]
    parts += [context.decode(tokens[i : i + 1], i, want_logits=True).copy() for i in range(120, 128)]
    return np.concatenate(parts)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("name", "flash_attn", "limit"), [("f32", False, 5e-6), ("f16", False, 3e-3), ("f16", True, 5e-3)]
)
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_centers_change_nothing_in_an_unquantized_cache(
    arch: str, name: str, flash_attn: bool, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in float32, so that nothing else rounds; centers larger than the keys cost f16 digits."""
    plain = Plan.uniform(Pair.parse(name), 2)
    centered = replace(plain, centers=Centers.from_arrays([3 * RNG.standard_normal(128)] * 2))
    tokens = RNG.integers(0, 250, 128).astype(np.int32)
    with open_model(write_tiny(tmp_path / "m.gguf", arch), 2) as tiny:
        if not flash_attn:
            monkeypatch.setattr(tiny._lib, "LLAMA_FLASH_ATTN_TYPE_ENABLED", tiny._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED)
        with tiny.context(plain, 512, 128) as a, tiny.context(centered, 512, 128) as b:
            error = relative_error(logits(b, tokens), logits(a, tokens))
    print(f"{arch} {name}: relative error {error:.1e}")
    assert 0 < error < limit


def mean_kld(model: Model, tokens: np.ndarray, plan: Plan, with_shift: bool = False) -> float:
    tallies = [Tally(), Tally()]
    with model.context(Pair.parse("f16"), 512, 256) as exact, model.context(plan, 512, 256) as context:
        found = []
        for c in (exact, context):
            c.decode(tokens[:256], 0, want_logits=False)
            if with_shift:
                shift(c)
            position = 256 - 124 * with_shift
            found.append(c.decode(tokens[256:384], position, want_logits=True).copy())
        score(found[0], found[1:], tokens[257:385], tallies)
    return tallies[1].result().kld_mean


def test_a_shift_moves_what_was_stored_with_its_center(model: Model, tokens: np.ndarray) -> None:
    """Centers of the size of keys: rotated as a part of the key, or left out, they would cost whole nats."""
    before, after = (mean_kld(model, tokens, MIXED, with_shift) for with_shift in (False, True))
    print(f"KLD {before:.5f} without a shift, {after:.5f} after one")
    assert 0 < after < 2 * before


def test_states_of_other_centers_are_refused(model: Model) -> None:
    flipped = bytearray(CENTERS.k[3])
    flipped[1] ^= 0x80  # the sign of one value
    other = replace(MIXED, centers=Centers((*CENTERS.k[:3], bytes(flipped), *CENTERS.k[4:])))
    with model.context(MIXED, 512, 128) as a, model.context(other, 512, 128) as b:
        state, _, expected = make_state(a)
        a.clear()
        assert load(a, state) == len(state)
        assert np.array_equal(follow(a), expected)
        assert load(b, state) == 0
        assert "center:" in model._log.reason()


def complete(*args: object) -> subprocess.CompletedProcess[str]:
    fixed = ("-p", "The capital of France is", "-n", "8", "--temp", "0", "-no-cnv", "-c", "256", "--no-warmup")
    command = [find_tool("llama-completion"), *fixed, *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def test_the_file_carries_the_centers_and_the_flag_leaves_them_out(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = model_shape(read_model(fetch_model("smollm2-135m")))
    annotate(fetch_model("smollm2-135m"), replace(MIXED, model=shape), path)
    done, off = complete("-m", path), complete("-m", path, "--no-kv-center")
    assert done.returncode == off.returncode == 0
    assert "kvtuner: keys centered in layers 0-29\n" in done.stderr
    assert "with them" not in done.stderr
    assert "values centered" not in done.stderr
    assert "centered" not in off.stderr
    assert "bits per value" in off.stderr
    assert "Paris" in off.stdout


def test_centers_of_another_size_are_refused(tmp_path: Path) -> None:
    short = Centers.from_arrays([np.ones(5)] + [None] * (N_LAYER - 1))
    replace(MIXED, centers=short).save(tmp_path / "plan.json")
    done = complete("-m", fetch_model("smollm2-135m"), "--kv-config", tmp_path / "plan.json")
    assert done.returncode != 0
    assert "layer 0: the K center has 5 values, the layer 192" in done.stderr
