"""Layers whose pair is given by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import EXACT, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.typed import typed_pair

_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


def parse_fixed(entries: Iterable[str]) -> dict[int, Pair]:
    """Pairs by layer from entries such as ``0,26-27=q8_0/q4_0``; one type stands for both sides.

    Raises `KvtunerError` for an entry of another form and for a layer that is given twice.
    """
    fixed: dict[int, Pair] = {}
    for entry in entries:
        layers, _, pair = entry.partition("=")
        for il in _layers(entry, layers):
            if il in fixed:
                raise KvtunerError(f"layer {il} is fixed twice, as {fixed[il]} and by {entry!r}: keep one")
            fixed[il] = typed_pair(pair)
    return fixed


def _layers(entry: str, text: str) -> list[int]:
    found = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise KvtunerError(f"{entry!r} fixes nothing: give layers and a pair, for example --fix 0,26-27=q8_0/q4_0")
        found += range(first, last + 1)
    return found


def check_fixed(fixed: Mapping[int, Pair], shape: ModelShape) -> None:
    """Raise `KvtunerError` unless the model has the layers, and their pairs fit its heads."""
    for il, pair in fixed.items():
        if il >= shape.n_layer:
            raise KvtunerError(
                f"layer {il} is fixed to {pair}, the model has {shape.n_layer} layers, from 0: correct --fix"
            )
    Plan(tuple(fixed.get(il, EXACT) for il in range(shape.n_layer)), shape)


def with_fixed(layers: Sequence[tuple[Pair, ...]], fixed: Mapping[int, Pair]) -> tuple[tuple[Pair, ...], ...]:
    """The candidates of all ``layers``, where those that are ``fixed`` have no other."""
    return tuple((fixed[il],) if il in fixed else pairs for il, pairs in enumerate(layers))


def fixed_facts(fixed: Mapping[int, Pair]) -> dict[str, dict[str, str]]:
    """What a provenance says of them; nothing where there are none."""
    return {"fixed": {str(il): str(pair) for il, pair in sorted(fixed.items())}} if fixed else {}
