from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import MAX_END, Ends, has_ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape

SHAPE = ModelShape("llama", (2, 2, 0, 1), 64, 64)
MIXED = (Pair("q8_0", "q4_0"), Pair("f16", "bf16"), Pair("q4_0", "q4_0"), Pair("f16", "q8_0"))
ENDS = Ends(4, 32)
PLAN = Plan(MIXED, SHAPE, ends=ENDS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-1, 32), "the ends have -1 first positions: give a whole number of 0 to 1048576"),
        ((4, MAX_END + 1), "the ends have 1048577 last positions: give a whole number of 0 to 1048576"),
        ((4, 1.0), "the ends have a number last positions: give a whole number of 0 to 1048576"),
        ((True, 32), "the ends have True first positions: give a whole number of 0 to 1048576"),
        ((0, 0), "the ends have neither first nor last positions: leave them out"),
        ((4, 32, "q4_0"), "unknown type 'q4_0' for the ends: use f16 or q8_0"),
        ((4, 32, ["f16"]), "unknown type a list for the ends: use f16 or q8_0"),
    ],
)
def test_what_is_no_ends_is_refused(values: tuple, words: str) -> None:
    with pytest.raises(KvtunerError) as caught:
        Ends(*values)
    assert str(caught.value) == words


def test_the_largest_and_the_smallest_ends() -> None:
    assert Ends(MAX_END, MAX_END, "q8_0").n_positions == 2 * MAX_END
    assert Ends(1, 0).n_positions == Ends(0, 1).n_positions == 1
    assert Ends(4, 32) == Ends(4, 32, "f16")


def test_a_plan_keeps_its_ends_through_json(tmp_path: Path) -> None:
    assert PLAN.to_json()["ends"] == {"first": 4, "last": 32, "type": "f16"}
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN
    assert "ends" not in PLAN.without_ends().to_json()
    assert Plan.from_json({**PLAN.to_json(), "ends": None}) == PLAN.without_ends()


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (4, "'ends' must be an object of {first, last, type}: see configs/plan.schema.json"),
        ([4, 32, "f16"], "'ends' must be an object of {first, last, type}: see configs/plan.schema.json"),
        ({"last": 32, "type": "f16"}, "the ends have None first positions: give a whole number of 0 to 1048576"),
        ({"first": 4, "last": 32}, "unknown type None for the ends: use f16 or q8_0"),
    ],
)
def test_wrong_ends_in_json_are_refused(ends: object, words: str) -> None:
    with pytest.raises(KvtunerError) as caught:
        Plan.from_json({**PLAN.to_json(), "ends": ends})
    assert str(caught.value) == words


def test_unknown_entries_of_the_ends_are_passed_over_as_those_of_a_plan() -> None:
    data = PLAN.to_json()
    assert Plan.from_json({**data, "x": 1, "ends": {**data["ends"], "x": 1}}) == PLAN


def test_the_fingerprint_covers_the_ends() -> None:
    others = [replace(PLAN, ends=ends) for ends in (Ends(4, 33), Ends(5, 32), Ends(4, 32, "q8_0"), None)]
    assert len({PLAN.fingerprint, *(plan.fingerprint for plan in others)}) == 5
    assert PLAN.without_ends().fingerprint == Plan(MIXED).fingerprint


def test_the_fingerprint_is_that_of_the_library() -> None:
    """Of ``kvtuner.plan/1;0:q4_0/q4_0;ends=4+32:f16``."""
    assert Plan((Pair("q4_0", "q4_0"),), ends=ENDS).fingerprint == "babe0a724c2a6fbc"


def test_layers_that_have_ends() -> None:
    """Those that quantize K or V in a cache of their own, which sees all positions and is no latent one."""
    assert [has_ends(pair, layer) for pair, layer in zip(MIXED, SHAPE.layers, strict=True)] == [
        True,
        False,
        False,
        True,
    ]
    q4 = Pair("q4_0", "q4_0")
    windows = replace(SHAPE, window=(512, 0, 0, 0))
    assert [has_ends(q4, layer) for layer in windows.layers] == [False, True, False, True]
    shared = replace(SHAPE, cache=(0, 0, None, 3))
    assert [has_ends(q4, layer) for layer in shared.layers] == [True, False, False, True]
    assert not any(has_ends(q4, layer) for layer in replace(SHAPE, latent=True).layers)


def test_blocks_of_the_ends_divide_the_heads_of_layers_that_have_them() -> None:
    """A side that the plan leaves in f16 is kept in the type of the ends, too."""
    odd = replace(SHAPE, head_dim_k=(64, 80, 80, 80))
    words = "layer 3: K ends of type q8_0 have blocks of 32 values, which do not divide the head size 80: use f16"
    with pytest.raises(KvtunerError, match=words):
        Plan(MIXED, odd, ends=Ends(4, 32, "q8_0"))
    assert Plan(MIXED, odd, ends=ENDS).ends == ENDS
    assert Plan((*MIXED[:3], MIXED[1]), odd, ends=Ends(4, 32, "q8_0")).ends
    with pytest.raises(KvtunerError, match="layer 3: V ends of type q8_0"):
        Plan((*MIXED[:3], Pair("q8_0", "f16")), replace(SHAPE, head_dim_v=(64, 64, 64, 80)), ends=Ends(1, 0, "q8_0"))


# bytes of one position: 2 and 1 KV heads of 64 for K and for V, in f16
ROW = 2 * (2 + 2 + 1 + 1) * 64


@pytest.mark.parametrize(
    ("context", "n_rows"),
    [
        (ContextSize(8192), 36 + 512),
        (ContextSize(8192, n_ubatch=64), 36 + 64),
        (ContextSize(300), 36 + 300),
        (ContextSize(8192, n_seq_max=4), 4 * 36 + 512),
        (ContextSize(8192, n_seq_max=4, unified=True), 4 * 36 + 512),
    ],
)
def test_bytes_of_the_ends(context: ContextSize, n_rows: int) -> None:
    """The ends of every sequence, and the rows of one ubatch once."""
    assert PLAN.ends_bytes(SHAPE, context) == n_rows * ROW
    assert PLAN.n_bytes(SHAPE, context) - PLAN.without_ends().n_bytes(SHAPE, context) == n_rows * ROW
    assert PLAN.without_ends().ends_bytes(SHAPE, context) == 0
    small = replace(PLAN, ends=Ends(4, 32, "q8_0"))
    assert small.ends_bytes(SHAPE, context) == n_rows * ROW // 64 * 34


def test_a_plan_without_quantized_layers_has_no_bytes_of_ends() -> None:
    assert Plan.uniform(Pair("f16", "f16"), 4).n_bytes(SHAPE, ContextSize(512)) == replace(
        Plan.uniform(Pair("f16", "f16"), 4), ends=ENDS
    ).n_bytes(SHAPE, ContextSize(512))


def test_bits_with_ends_count_first_and_last_rows_of_one_sequence() -> None:
    """36 positions of 16 bits beside 8192 of 3.25."""
    plan = Plan.uniform(Pair("q3_nl", "q3_nl"), 4)
    ended = replace(plan, ends=ENDS)
    assert ended.bits_per_value(SHAPE) == plan.bits_per_value(SHAPE) == plan.bits_with_ends(SHAPE, 8192) == 3.25
    assert ended.bits_with_ends(SHAPE, 8192) == 3.25 + 16 * 36 / 8192
    assert replace(plan, ends=Ends(4, 128, "q8_0")).bits_with_ends(SHAPE, 8192) == 3.25 + 8.5 * 132 / 8192
    assert ended.bits_with_ends(SHAPE, 8000) == 3.25 + 16 * 36 / 8192  # cells come in multiples of 256


def test_bits_with_ends_weigh_windows_in_the_context_asked_for() -> None:
    """A layer with a window of 512 keeps 1024 cells, and no ends."""
    shape = ModelShape("gemma3", (1, 1), 64, 64, window=(512, 0))
    plan = Plan((Pair("q8_0", "q8_0"), Pair("q4_0", "q4_0")), ends=ENDS)
    expected = (1024 * 8.5 + 8192 * 4.5 + 36 * 16) / (1024 + 8192)
    assert plan.bits_with_ends(shape, 8192) == pytest.approx(expected)


def test_bits_with_ends_need_a_model_with_a_cache() -> None:
    with pytest.raises(KvtunerError, match="no layer with a KV cache"):
        replace(PLAN, model=None).bits_with_ends(replace(SHAPE, n_head_kv=(0,) * 4), 8192)
