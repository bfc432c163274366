"""Scaling in the built library: exact in a cache that loses nothing, the same as torch, kept by shifts and states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Model, open_model
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from tests.native.test_center import complete, logits, mean_kld, relative_error
from tests.native.test_state import follow, load, make_state
from tests.tiny import write_tiny

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER, N_HEAD_KV, HEAD_SIZE = 30, 3, 64
RNG = np.random.default_rng(9)
NAMES = ("f16", "q8_0/q4_0", "q5_1/f16")


def some_scales(arch: str, n_layer: int, n_head_kv: int, width: float = 1.0) -> Scales:
    """Both channels of a pair are alike, and otherwise far apart: ``width`` is the deviation of their logarithms."""
    values = np.exp(width * RNG.standard_normal((n_layer, n_head_kv, HEAD_SIZE // 2)))
    both = np.repeat(values, 2, -1) if arch == "llama" else np.concatenate((values, values), -1)
    return Scales.from_arrays(both)


SCALES = some_scales("llama", N_LAYER, N_HEAD_KV, 0.5)
CENTERS = Centers.from_arrays([RNG.standard_normal(N_HEAD_KV * HEAD_SIZE) for _ in range(N_LAYER)], 16)
MIXED = Plan(tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER)), scales=SCALES)
PLANS = [MIXED, replace(MIXED, centers=CENTERS), replace(MIXED, centers=CENTERS, ends=Ends(4, 32, "q8_0"))]


@pytest.mark.parametrize(
    ("name", "flash_attn", "limit"), [("f32", False, 5e-6), ("f16", False, 3e-3), ("f16", True, 5e-3)]
)
@pytest.mark.parametrize("span", [None, 16])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_scales_change_nothing_in_an_unquantized_cache(
    arch: str,
    span: int | None,
    name: str,
    flash_attn: bool,
    limit: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Plan.uniform(Pair.parse(name), 2)
    centers = Centers.from_arrays([RNG.standard_normal(128)] * 2, span)
    scaled = replace(plain, centers=centers, scales=some_scales(arch, 2, 2))
    tokens = RNG.integers(0, 250, 128).astype(np.int32)
    with open_model(write_tiny(tmp_path / "m.gguf", arch), 2) as tiny:
        if not flash_attn:
            monkeypatch.setattr(tiny._lib, "LLAMA_FLASH_ATTN_TYPE_ENABLED", tiny._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED)
        with tiny.context(plain, 512, 128) as a, tiny.context(scaled, 512, 128) as b:
            error = relative_error(logits(b, tokens), logits(a, tokens))
    print(f"{arch} {name}: relative error {error:.1e}")
    assert 0 < error < limit


@pytest.mark.parametrize(
    "plan", [*PLANS, replace(PLANS[1], ends=Ends(4, 512))], ids=["scaled", "centered", "with ends", "all exact"]
)
def test_a_shift_turns_scaled_keys(plan: Plan, model: Model, tokens: np.ndarray) -> None:
    """Scales that were not those of pairs would cost as much as other keys.

    Scales that are farther apart would cost so much by themselves that a few tokens decide the means.
    """
    before, after = (mean_kld(model, tokens, plan, with_shift) for with_shift in (False, True))
    apart = replace(plan, scales=Scales.from_arrays([np.roll(SCALES.array_k(il), 1) for il in range(N_LAYER)]))
    wrong = mean_kld(model, tokens, apart, with_shift=True)
    print(f"KLD {before:.5f} without a shift, {after:.5f} after one, {wrong:.5f} with scales of no pairs")
    assert 0 < after < 2 * before
    assert wrong > 10 * after


def test_states_of_other_scales_are_refused(model: Model) -> None:
    other = replace(MIXED, scales=some_scales("llama", N_LAYER, N_HEAD_KV))
    with model.context(MIXED, 512, 128) as a:
        state, _, expected = make_state(a)
        a.clear()
        assert load(a, state) == len(state)
        assert np.array_equal(follow(a), expected)
        for plan in (other, MIXED.without_scales()):
            with model.context(plan, 512, 128) as b:
                assert load(b, state) == 0
                assert "+scale:" in model._log.reason()


@pytest.mark.parametrize("plan", PLANS[1:], ids=["centered", "with ends"])
def test_the_file_carries_the_scales_which_go_with_the_ends_alone(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = model_shape(read_model(fetch_model("smollm2-135m")))
    annotate(fetch_model("smollm2-135m"), replace(plan, model=shape), path)
    for flag in ("--kv-center", "--no-kv-center", "--no-kv-ends"):
        done = complete("-m", path, flag)
        assert done.returncode == 0
        assert "run without" not in done.stderr
        is_scaled = "kvtuner: keys scaled in layers 0-29\n" in done.stderr
        assert is_scaled == (plan.ends is None or flag != "--no-kv-ends")
        assert ("keys centered" in done.stderr) == (flag != "--no-kv-center")


def test_scales_of_another_size_are_refused(tmp_path: Path) -> None:
    short = Scales.from_arrays([np.ones(5)] + [None] * (N_LAYER - 1))
    replace(MIXED, scales=short).save(tmp_path / "plan.json")
    done = complete("-m", fetch_model("smollm2-135m"), "--kv-config", tmp_path / "plan.json")
    assert done.returncode != 0
    assert "layer 0: the K scale has 5 values, the layer 192" in done.stderr


def test_what_needs_flash_attention_is_missed_aloud(tmp_path: Path) -> None:
    keys = replace(PLANS[2], pairs=tuple(Pair(pair.k, "f16") for pair in MIXED.pairs))
    plans = {
        "exact ends, scales, centers by blocks": keys,
        "exact ends, scales": keys.without_centers(),
        "centers by blocks": keys.without_ends(),
    }
    for missed, plan in plans.items():
        plan.save(tmp_path / "plan.json")
        done = complete("-m", fetch_model("smollm2-135m"), "--kv-config", tmp_path / "plan.json", "-fa", "off")
        assert f"20 of 20 quantized layers run without the plan's {missed}: FlashAttention is off\n" in done.stderr
