from __future__ import annotations

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.published.bitstable import BitsTable, parse_types


def test_types_go_over_the_defaults() -> None:
    assert parse_types() == {8: "q8_0", 4: "q4_0", 2: "q2_nl"}
    assert parse_types("2=q3_nl, 3 = q3_nl") == {8: "q8_0", 4: "q4_0", 2: "q3_nl", 3: "q3_nl"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "BITS=TYPE"),
        ("8", "'8' gives no type"),
        ("8=q9_9", "q9_9"),
        ("8=", "'8=' gives no type"),
        ("0=f16", "0=f16"),
        ("17=f32", "17=f32"),
        ("2=q2_nl,2=q3_nl", "two types for 2 bits"),
        ("9" * 5000 + "=f16", "BITS=TYPE"),
    ],
)
def test_bad_types(text: str, word: str) -> None:
    with pytest.raises(KvtunerError, match=word) as caught:
        parse_types(text)
    assert len(str(caught.value)) < 200


def test_bits_without_a_type_name_layer_and_side() -> None:
    with pytest.raises(KvtunerError, match=r"layer 1: V has 3 bits.*3=TYPE"):
        BitsTable((4, 4), (4, 3)).plan(parse_types())
    plan = BitsTable((4, 4), (4, 3)).plan(parse_types("3=q3_nl"))
    assert plan.pairs[1] == Pair("q4_0", "q3_nl")
