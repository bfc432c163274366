"""The strict reader reads what Python's own does, and refuses what RFC 8259 does not know."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtuner_gguf.errors import KvtunerError, quoted, shown
from kvtuner_gguf.files import strictjson

NUMBERS = st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_what_json_writes_is_read_back(data: object, is_ascii: bool, indent: int | str | None) -> None:
    text = json.dumps(data, ensure_ascii=is_ascii, indent=indent)
    found = strictjson.parse(text.encode())
    assert found == data
    assert json.dumps(found) == json.dumps(data)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "line 1, column 1: a value is expected"),
        (b"[1,]", "line 1, column 4: a value is expected"),
        (b'{"a" 1}', "line 1, column 6: ':' is expected"),
        (b'{"a": 1,}', "line 1, column 9: a name in quotes is expected"),
        (b'{\n "\xc3\xa9": 1 2}', "line 2, column 9: ',' or '}' is expected"),
        (b"[1 2]", "line 1, column 4: ',' or ']' is expected"),
        (b"[01]", "line 1, column 3: ',' or ']' is expected"),
        (b"[1.]", "line 1, column 3: ',' or ']' is expected"),
        (b"[+1]", "column 2: a value is expected"),
        (b"['a']", "column 2: a value is expected"),
        (b'["\\x"]', "column 2: a text is not closed, or holds what must be escaped"),
        (b'["\t"]', "column 2: a text is not closed"),
        (b'["a', "column 2: a text is not closed"),
        (b'["\\udc00\\ud800"]', "column 2: a text holds half of a surrogate pair"),
        (b"1 1", "column 3: something follows the value"),
        (b"1\0", "column 2: something follows the value"),
        (b"\xff", "byte 0 is no utf-8"),
        (b'"\xed\xa0\x80"', "byte 1 is no utf-8"),
        (b'{"a": {"b": 1, "b": 2}}', "column 16: the name 'b' is there twice"),
        (b"[" * 65, "column 65: nested in more than 64 levels"),
        (b"[" * 100_000, "nested in more than 64 levels"),
        (b"[1e309]", "column 2: a number is too large"),
        (b"-" + b"9" * 5000, "a number is too large"),
        (b"NaN", "a value is expected"),
        (b"-Infinity", "a value is expected"),
    ],
)
def test_what_is_refused_names_its_place(raw: bytes, words: str) -> None:
    with pytest.raises(KvtunerError) as caught:
        strictjson.parse(raw)
    assert words in str(caught.value)
    assert str(caught.value).startswith("not JSON (")
    assert str(caught.value).endswith("): correct it or tune again")


def test_a_byte_order_mark_is_passed_over_once() -> None:
    assert strictjson.parse(b"\xef\xbb\xbf [1]") == [1]
    with pytest.raises(KvtunerError, match="line 1, column 1"):
        strictjson.parse(b"\xef\xbb\xbf" * 2 + b"[1]")


def test_values_of_outside_data_are_short_and_of_one_line() -> None:
    assert quoted("a\né") == "'a\\x0a\\xc3\\xa9'"
    assert quoted("x" * 40) == f"'{'x' * 40}'"
    assert quoted("x" * 41) == f"'{'x' * 40}...'"
    assert [shown(value) for value in (None, True, 7, 2**64, 0.5, [], {}, "a")] == [
        *("None", "True", "7", "a number", "a number", "a list", "an object", "'a'")
    ]
