"""JSON as RFC 8259 has it, and nothing more: the twin of ``cpp/plan/kvtuner-strict-json.cpp``.

Both read the same texts and refuse the same ones with the same words: what Python wrote, the library must be able to
load. Beyond the RFC's grammar refused are names given twice, halves of surrogate pairs, numbers that no double holds
and deep nesting; a byte order mark is passed over.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from kvtuner_gguf.errors import KvtunerError, quoted

MAX_DEPTH = 64
MANY_DIGITS = 308  # a whole number with more can be beyond a double

_SPACE = re.compile(r"[ \t\n\r]*")
_TEXT = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {"true": True, "false": False, "null": None}


def parse(raw: bytes) -> Any:
    """The value that ``raw`` holds. Raises `KvtunerError` with line and column where it is no JSON."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as err:
        raise _not_json(f"byte {err.start} is no utf-8") from err
    return _Reader(text.removeprefix("\ufeff")).whole()


def _not_json(reason: str) -> KvtunerError:
    return KvtunerError(f"not JSON ({reason}): correct it or tune again")


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> Any:
        self._pass_space()
        value = self._value(0)
        if self._at < len(self._text):
            raise self._fail("something follows the value")
        return value

    def _fail(self, reason: str, at: int | None = None) -> KvtunerError:
        at = self._at if at is None else at
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        return _not_json(f"line {line}, column {column}: {reason}")

    def _pass_space(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()

    def _next_is(self, mark: str) -> bool:
        """Whether ``mark`` comes next; it is stepped over then."""
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        self._pass_space()
        return True

    def _value(self, depth: int) -> Any:
        start = self._text[self._at : self._at + 1]
        if start in ("{", "["):
            if depth == MAX_DEPTH:
                raise self._fail(f"nested in more than {MAX_DEPTH} levels")
            return self._object(depth + 1) if start == "{" else self._list(depth + 1)
        if start == '"':
            return self._string()
        for word, value in _WORDS.items():
            if self._next_is(word):
                return value
        return self._number()

    def _object(self, depth: int) -> dict[str, Any]:
        self._next_is("{")
        found: dict[str, Any] = {}
        if self._next_is("}"):
            return found
        while True:
            start = self._at
            if not self._text.startswith('"', start):
                raise self._fail("a name in quotes is expected")
            name = self._string()
            if name in found:
                raise self._fail(f"the name {quoted(name)} is there twice", start)
            if not self._next_is(":"):
                raise self._fail("':' is expected")
            found[name] = self._value(depth)
            if self._next_is("}"):
                return found
            if not self._next_is(","):
                raise self._fail("',' or '}' is expected")

    def _list(self, depth: int) -> list[Any]:
        self._next_is("[")
        found: list[Any] = []
        if self._next_is("]"):
            return found
        while True:
            found.append(self._value(depth))
            if self._next_is("]"):
                return found
            if not self._next_is(","):
                raise self._fail("',' or ']' is expected")

    def _string(self) -> str:
        match = _TEXT.match(self._text, self._at)
        if match is None:
            raise self._fail("a text is not closed, or holds what must be escaped")
        token = match[0]
        value = json.loads(token) if "\\" in token else token[1:-1]
        if "\\" in token and _SURROGATE.search(value):
            raise self._fail("a text holds half of a surrogate pair")
        self._at = match.end()
        self._pass_space()
        return value

    def _number(self) -> int | float:
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            raise self._fail("a value is expected")
        token, is_whole = match[0], match[1] is None and match[2] is None
        if (not is_whole or len(token) > MANY_DIGITS) and math.isinf(float(token)):
            raise self._fail("a number is too large, of 309 digits or more")
        self._at = match.end()
        self._pass_space()
        return int(token) if is_whole else float(token)
