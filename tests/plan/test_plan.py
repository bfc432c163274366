from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, cache_type
from kvtuner_gguf.plan.fingerprint import fnv1a_64
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import SCHEMA, Plan
from kvtuner_gguf.plan.shape import ModelShape

SHAPE = ModelShape("llama", (3, 3, 0, 3), 64, 64)
LAYERS = [{"layer": il, "k": "q8_0", "v": "q4_0"} for il in range(4)]

# true bits per value as upstream's type traits give them
BITS = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
    "q3_nl": 3.25,
    "q2_nl": 2.25,
}


def test_true_bits() -> None:
    assert {name: kind.bits_per_value for name, kind in CACHE_TYPES.items()} == BITS


def test_types_are_those_of_gguf_and_two_of_ours() -> None:
    import gguf

    ours = CACHE_TYPES.keys() - {number.name.lower() for number in gguf.GGMLQuantizationType}
    assert {name: CACHE_TYPES[name].ggml_type for name in ours} == {"q2_nl": 43, "q3_nl": 44}
    assert max(gguf.GGMLQuantizationType) < 43
    for name in CACHE_TYPES.keys() - ours:
        kind = CACHE_TYPES[name]
        number = gguf.GGMLQuantizationType[name.upper()]
        assert kind.ggml_type == number
        assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[number]


def test_a_row_must_be_whole_blocks() -> None:
    assert cache_type("q8_0").row_bytes(64) == 68
    with pytest.raises(KvtunerError, match="80"):
        cache_type("q8_0").row_bytes(80)


def test_pairs() -> None:
    assert Pair.parse("q8_0/q4_0") == Pair("q8_0", "q4_0")
    assert Pair.parse("q8_0") == Pair("q8_0", "q8_0")
    for text in ("q9_0", "q8_0/q4_0/f16", "", "q8_0/"):
        with pytest.raises(KvtunerError):
            Pair.parse(text)


def test_bytes_and_bits_follow_the_shape() -> None:
    plan = Plan(tuple(Pair.parse(name) for name in ("f16", "q8_0/q4_0", "q4_0", "q5_1/f16")))
    values = 3 * 64
    expected = values * (16 + 16 + 8.5 + 4.5 + 6 + 16) / 8  # layer 2 has no cache
    assert plan.bytes_per_token(SHAPE) == expected
    assert plan.bits_per_value(SHAPE) == pytest.approx((16 + 16 + 8.5 + 4.5 + 6 + 16) / 6)
    assert plan.payload_bits(SHAPE) == pytest.approx((16 + 16 + 8 + 4 + 5 + 16) / 6)
    assert plan.payload_bits() == pytest.approx((16 + 16 + 8 + 4 + 4 + 4 + 5 + 16) / 8)
    wide_keys = ModelShape("llama", (1,), 128, 64)
    assert Plan.uniform(Pair("q8_0", "q4_0"), 1).payload_bits(wide_keys) == pytest.approx((2 * 8 + 4) / 3)


def test_json_round_trip(tmp_path: Path) -> None:
    plan = Plan((Pair("q8_0", "q4_0"),) * 4, SHAPE, {"text": "web", "kld_mean": 0.5})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_the_fingerprint_knows_types_and_order() -> None:
    a, b = Pair("q8_0", "q4_0"), Pair("q4_0", "q8_0")
    prints = {Plan(pairs).fingerprint for pairs in ((a, b), (b, a), (a, a), (a, b, b))}
    assert len(prints) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in prints)
    assert Plan((a, b), provenance={"x": 1}).fingerprint == Plan((a, b)).fingerprint


def test_the_hash_is_fnv_1a() -> None:
    """The values that its authors publish."""
    assert fnv1a_64(b"") == 0xCBF29CE484222325
    assert fnv1a_64(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a_64(b"foobar") == 0x85944171F73967E8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [*LAYERS[:3], {"layer": 2, "k": "f16", "v": "f16"}]}, ("layer 2", "twice")),
        ({"layers": [LAYERS[0], LAYERS[2]]}, ("layer 1", "missing")),
        ({"layers": [{"layer": 0, "k": "q9_9", "v": "f16"}]}, ("layer 0", "q9_9", "q8_0")),
        ({"layers": [{"layer": 0, "k": "f16"}]}, ("layer 0", "None")),
        ({"layers": [{"layer": -1, "k": "f16", "v": "f16"}]}, ("-1",)),
        ({"layers": [{"layer": True, "k": "f16", "v": "f16"}]}, ("True",)),
        ({"layers": []}, ("layers",)),
        ({"layers": {}}, ("layers",)),
        ({"schema": "other"}, ("schema", "other")),
        ({"provenance": 3}, ("provenance",)),
        ({"model": {"architecture": "llama"}}, ("n_layer",)),
        ({"model": {"n_layer": 10**9, "n_head_kv": 8}}, ("n_layer", "1000000000", "4096")),
        ({"model": {"n_layer": 4, "n_head_kv": 8, "head_dim_k": 10**400}}, ("head_dim_k",)),
    ],
)
def test_bad_plans_name_layer_value_and_remedy(change: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(KvtunerError) as caught:
        Plan.from_json({"schema": SCHEMA, "layers": LAYERS, **change})
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_a_plan_must_fit_the_shape() -> None:
    with pytest.raises(KvtunerError, match="3 layers, the model 4"):
        Plan.uniform(Pair.parse("f16"), 3).check(SHAPE)
    narrow = ModelShape("llama", (1,), 80, 64)
    with pytest.raises(KvtunerError, match=r"layer 0: K type q8_0 .* 80"):
        Plan((Pair.parse("q8_0"),)).check(narrow)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'"x"', b"NaN", b"9" * 5000])
def test_bad_files_name_the_file(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(raw)
    with pytest.raises(KvtunerError, match=r"plan\.json"):
        Plan.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["q8_0", SCHEMA]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["schema", "layers", "layer", "k", "v", "model", "n_layer"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_is_a_plan_or_an_error_of_ours(data: object) -> None:
    if isinstance(data, dict):
        data["schema"] = SCHEMA
    with suppress(KvtunerError):
        Plan.from_json(json.loads(json.dumps(data)))
