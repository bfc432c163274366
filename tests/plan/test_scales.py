from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.vectors import flat_float32
from kvtuner_gguf.report.plans import plan_summary, plan_to_json

SHAPE = ModelShape("llama", (2, 0, 1), 32, 64)
RNG = np.random.default_rng(6)
K = [np.exp(RNG.standard_normal(64)), None, np.exp(RNG.standard_normal(32))]
SCALES = Scales.from_arrays(K)
PLAN = Plan((Pair.parse("q8_0/q4_0"), Pair.parse("f16"), Pair.parse("q4_0")), SHAPE, scales=SCALES)


def half(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f2").tobytes()).decode()


def entry(**more: object) -> dict:
    return {"schema": "kvtuner.plan/1", "layers": [{"layer": 0, "k": "q8_0", "v": "q8_0", **more}]}


@pytest.mark.parametrize("centers", [None, Centers.from_arrays([np.ones(64), None, None], 256)])
def test_a_plan_keeps_its_scales_through_json(centers: Centers | None, tmp_path: Path) -> None:
    plan = replace(PLAN, centers=centers)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert np.array_equal(loaded.scales.array_k(2), K[2].astype(np.float16).astype(np.float32))
    assert loaded.scales.array_k(1) is None
    assert "scale_k" not in plan.without_scales().to_json()["layers"][0]


def test_the_fingerprint_covers_the_scales() -> None:
    """Of ``kvtuner.plan/1;0:q4_0/q4_0;center_k=4b72477f9c5c2f98;scale_k=4b72477f9c5c2f98;ends=4+32:f16``, for one."""
    centered = replace(PLAN.without_scales(), centers=Centers(SCALES.k))
    fewer = replace(PLAN, scales=Scales((*SCALES.k[:2], b"")))
    plans = [PLAN, PLAN.without_scales(), centered, fewer, replace(centered, scales=SCALES)]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert PLAN.without_scales().fingerprint == Plan(PLAN.pairs).fingerprint
    ones = [np.ones(1)]
    one = Plan((Pair("q4_0", "q4_0"),), centers=Centers.from_arrays(ones), ends=Ends(4, 32))
    assert replace(one, scales=Scales.from_arrays(ones)).fingerprint == "93490be4cef03e9f"


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (7, "is no base64: tune the model again"),
        ("???", "is no base64: tune the model again"),
        (base64.b64encode(b"abc").decode(), "has 3 bytes, which are no float16 values: tune the model again"),
        (half(1, np.nan), "holds a value that is no number: tune the model again"),
        (half(np.inf, 1), "holds a value that is no number: tune the model again"),
        (half(1, 0), "holds a value that is not above 0: tune the model again"),
        (half(-1, 1), "holds a value that is not above 0: tune the model again"),
    ],
)
def test_hostile_scales_are_refused_in_one_line(vector: object, words: str) -> None:
    with pytest.raises(KvtunerError, match=f"^layer 0: the K scale {words}$"):
        Plan.from_json(entry(scale_k=vector))


def test_scales_are_left_out_with_the_ends_that_they_are_for() -> None:
    plan = Plan.from_json(entry(scale_k=half(1, 2)))
    assert plan.without_ends().scales == plan.scales
    assert replace(plan, ends=Ends(4, 32)).without_ends() == plan.without_scales()


def test_a_scale_of_zeros_is_none() -> None:
    assert Plan.from_json(entry(scale_k=half(0, 0))).scales is None
    assert Plan.from_json(entry(scale_k=None)).scales is None


def test_a_scale_of_another_size_names_its_layer() -> None:
    with pytest.raises(KvtunerError, match="layer 2: the K scale has 31 values, the layer 32"):
        replace(PLAN, scales=Scales.from_arrays([K[0], None, K[2][1:]]))
    with pytest.raises(KvtunerError, match="the plan has 3 layers and scales of 2: tune the model again"):
        replace(PLAN, scales=Scales(SCALES.k[:2]))


def test_the_flat_form_has_zeros_for_layers_without_a_scale() -> None:
    flat = flat_float32(SCALES.k, SHAPE.sizes_k)
    assert tuple(Scales.from_flat(flat, SHAPE.sizes_k)) == SCALES.k
    with pytest.raises(KvtunerError, match="the K scales have 95 values, the model's layers 96"):
        Scales.from_flat(flat[1:], SHAPE.sizes_k)
    with pytest.raises(KvtunerError, match="layer 2: the K scale holds a value that is not above 0"):
        Scales.from_flat(np.concatenate((flat[:-1], [-1])), SHAPE.sizes_k)


def test_layers_that_are_not_quantized_need_no_scale() -> None:
    k_only, v_only = Pair("q8_0", "f16"), Pair("bf16", "q4_0")
    assert SCALES.of_quantized((k_only, v_only, v_only)) == Scales((SCALES.k[0], b"", b""))
    assert SCALES.of_quantized((v_only,) * 3) is None


def test_a_plan_shows_where_keys_are_scaled() -> None:
    assert "\nkeys scaled in layers 0,2\n" in plan_summary(PLAN)
    assert "scaled" not in plan_summary(PLAN.without_scales())
    assert [layer["scale_k"] for layer in plan_to_json(PLAN)["layers"]] == [True, False, True]
