from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.plan.centers import Centers, n_blocks
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.vectors import flat_float32

SHAPE = ModelShape("llama", (2, 0, 1), 32, 64)
RNG = np.random.default_rng(5)
K = [RNG.standard_normal(64), None, RNG.standard_normal(32)]
CENTERS = Centers.from_arrays(K)
PLAN = Plan((Pair.parse("q8_0/q4_0"), Pair.parse("f16"), Pair.parse("q4_0")), SHAPE, centers=CENTERS)


def test_a_plan_keeps_its_centers_through_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == PLAN
    assert np.array_equal(loaded.centers.array_k(2), K[2].astype(np.float16).astype(np.float32))
    assert loaded.centers.array_k(1) is None


def test_the_fingerprint_covers_the_centers() -> None:
    changed = bytearray(CENTERS.k[0])
    changed[0] ^= 1
    others = [
        PLAN.without_centers(),
        Plan(PLAN.pairs, SHAPE, centers=Centers((bytes(changed), *CENTERS.k[1:]))),
        Plan(PLAN.pairs, SHAPE, centers=Centers((*CENTERS.k[:2], b""))),
    ]
    assert len({PLAN.fingerprint, *(plan.fingerprint for plan in others)}) == 4
    assert PLAN.without_centers().fingerprint == Plan(PLAN.pairs).fingerprint


@pytest.mark.parametrize("span", [16, 256, 65536])
def test_a_plan_keeps_its_span(span: int, tmp_path: Path) -> None:
    plan = replace(PLAN, centers=replace(CENTERS, span=span))
    plan.save(tmp_path / "plan.json")
    assert plan.to_json()["center_span"] == span
    assert Plan.load(tmp_path / "plan.json") == plan
    assert "center_span" not in PLAN.to_json()
    assert plan.centers.of_quantized(PLAN.pairs) == plan.centers
    assert plan.centers.of_quantized((Pair.parse("f16"),) * 3) is None


def test_the_fingerprint_covers_the_span() -> None:
    """Of ``kvtuner.plan/1;0:q4_0/q4_0;center_k=4b72477f9c5c2f98;center_span=256;ends=4+32:f16``, for one."""
    plans = [replace(PLAN, centers=replace(CENTERS, span=span)) for span in (None, 256, 512)]
    assert len({plan.fingerprint for plan in plans}) == 3
    assert plans[0].fingerprint == PLAN.fingerprint
    one = Plan((Pair("q4_0", "q4_0"),), centers=Centers.from_arrays([np.ones(1)], 256), ends=Ends(4, 32))
    assert one.fingerprint == "01058f9fc88fca4e"


@pytest.mark.parametrize("span", [0, 8, 100, 131072, -256, True, 256.0, "256", [256]])
def test_what_is_no_span_is_refused(span: object) -> None:
    words = re.escape(f"the center span is {shown(span)}: give a power of two from 16 to 65536")
    with pytest.raises(KvtunerError, match=f"^{words}$"):
        Plan.from_json({**entry(center_k="ADwAQA=="), "center_span": span})


def test_a_span_without_centers_is_refused() -> None:
    words = "^center_span is given, and no layer has a center: leave it out$"
    for data in (entry(), entry(center_k="AAA=")):
        with pytest.raises(KvtunerError, match=words):
            Plan.from_json({**data, "center_span": 256})
        assert Plan.from_json({**data, "center_span": None}).centers is None


@pytest.mark.parametrize(
    ("span", "n_ctx", "expected"),
    [(None, 8192, 0), (256, 1, 1), (256, 256, 1), (256, 257, 2), (16, 8192, 512), (65536, 8192, 1)],
)
def test_blocks_of_a_context(span: int | None, n_ctx: int, expected: int) -> None:
    assert n_blocks(span, n_ctx) == expected
    centers = replace(CENTERS, span=span)
    n_bytes = [2 * 64 * expected, 0, 2 * 32 * expected]
    assert [centers.table_bytes(il, n_ctx) for il in range(3)] == n_bytes


@pytest.mark.parametrize(
    ("context", "n_positions"),
    [
        (ContextSize(8192), 8192),
        (ContextSize(1000), 1024),
        (ContextSize(4096, n_seq_max=3), 1536),
        (ContextSize(4096, n_seq_max=3, unified=True), 4096),
    ],
)
def test_one_table_serves_all_sequences(context: ContextSize, n_positions: int) -> None:
    plan = replace(PLAN, centers=replace(CENTERS, span=256))
    n_bytes = 2 * (64 + 32) * (n_positions // 256)
    assert plan.centers_bytes(SHAPE, context) == n_bytes
    assert plan.n_bytes(SHAPE, context) == PLAN.n_bytes(SHAPE, context)
    assert PLAN.centers_bytes(SHAPE, context) == PLAN.without_centers().centers_bytes(SHAPE, context) == 0


def test_a_layer_that_reads_anothers_cache_has_no_table() -> None:
    shape = replace(SHAPE, n_head_kv=(2, 0, 2), head_dim_k=32, cache=(0, None, 0))
    centers = Centers.from_arrays([np.ones(64), None, np.ones(64)], 256)
    plan = Plan(PLAN.pairs, shape, centers=centers)
    assert plan.centers_bytes(shape, ContextSize(256)) == 2 * 64


def test_bits_count_the_tables() -> None:
    """Here each layer with a cache has one, of 16 bits per 256 values of K, which are half of all values."""
    plan = replace(PLAN, centers=replace(CENTERS, span=256))
    bits = Plan(plan.pairs, SHAPE).bits_with_ends(SHAPE, 8192)
    size = sum(2 * n * 8192 // 256 for n in (64, 32))
    n_values = sum(layer.kept_k + layer.kept_v for layer in SHAPE.layers) * 8192
    assert plan.bits_with_ends(SHAPE, 8192) == pytest.approx(bits + 8 * size / n_values, rel=1e-12)
    assert plan.bits_per_value(SHAPE) == PLAN.bits_per_value(SHAPE)


def test_the_flat_form_has_zeros_for_layers_without_a_center() -> None:
    flat = flat_float32(CENTERS.k, SHAPE.sizes_k)
    assert flat.shape == (96,)
    back = Centers.from_flat(flat, SHAPE.sizes_k)
    assert not back[1]
    assert tuple(back) == CENTERS.k
    with pytest.raises(KvtunerError, match="K centers have 95 values, the model's layers 96"):
        Centers.from_flat(flat[1:], SHAPE.sizes_k)


def test_layers_that_are_not_quantized_need_no_center() -> None:
    k_only, v_only = Pair("q8_0", "f16"), Pair("bf16", "q4_0")
    kept = Centers((b"aa", b"bb", b"")).of_quantized((k_only, v_only, v_only))
    assert kept == Centers((b"aa", b"", b""))
    assert Centers((b"aa",)).of_quantized((v_only,)) is None
    assert CENTERS.of_quantized((Pair.parse("f16"),) * 3) is None


def entry(**more: object) -> dict:
    return {"schema": "kvtuner.plan/1", "layers": [{"layer": 0, "k": "q8_0", "v": "q8_0", **more}]}


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (7, "layer 0: the K center is no base64"),
        ("???", "layer 0: the K center is no base64"),
        (base64.b64encode(b"abc").decode(), "layer 0: the K center has 3 bytes"),
        (base64.b64encode(np.array([np.nan], "<f2").tobytes()).decode(), "layer 0: the K center holds a value"),
    ],
)
def test_hostile_centers_are_refused_in_one_line(vector: object, words: str) -> None:
    with pytest.raises(KvtunerError, match=words) as caught:
        Plan.from_json(json.loads(json.dumps(entry(center_k=vector))))
    assert "\n" not in str(caught.value)


def test_a_center_of_another_size_names_its_layer() -> None:
    with pytest.raises(KvtunerError, match="layer 2: the K center has 31 values, the layer 32"):
        Plan(PLAN.pairs, SHAPE, centers=Centers.from_arrays([K[0], None, K[2][1:]]))


@pytest.mark.parametrize("vector", ["AL4=", "AAA=", "", 7, False])
def test_centers_of_values_are_refused(vector: object) -> None:
    """Of an earlier version, whatever they are, and before the center of the layer's keys is looked at."""
    words = "^layer 0: center_v is no longer used, since centers give values nothing: remove it$"
    with pytest.raises(KvtunerError, match=words):
        Plan.from_json(entry(center_k="???", center_v=vector))
    assert Plan.from_json(entry(center_v=None)).centers is None


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(KvtunerError, match="no number"):
        Centers.from_arrays([np.array([1e6])])
