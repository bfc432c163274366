"""Cache types as people write them."""

from __future__ import annotations

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.typed import typed_list, typed_pair, typed_type


def test_upper_case_and_spaces_do_not_count() -> None:
    assert typed_type(" Q8_0 ").name == "q8_0"
    assert typed_pair("Q8_0 / IQ4_NL") == Pair("q8_0", "iq4_nl")
    assert typed_pair("F16") == Pair("f16", "f16")
    assert typed_list("q8_0, Q4_0") == ("q8_0", "q4_0")


@pytest.mark.parametrize(
    ("text", "like"), [("q8_O", "q8_0"), ("q80", "q8_0"), ("iq4nl", "iq4_nl"), ("fp16", "f16"), ("q3_n1", "q3_nl")]
)
def test_a_typo_is_told_what_is_like_it(text: str, like: str) -> None:
    with pytest.raises(KvtunerError, match=f"unknown cache type '{text}': did you mean {like}"):
        typed_type(text)


@pytest.mark.parametrize("text", ["abacus", "", ","])
def test_other_words_are_told_all_names(text: str) -> None:
    with pytest.raises(KvtunerError, match=r"use one of f32, f16, bf16, q8_0"):
        typed_list(text)


def test_a_pair_has_two_sides() -> None:
    with pytest.raises(KvtunerError, match="write K/V, for example q8_0/q4_0"):
        typed_pair("q8_0/q4_0/f16")
