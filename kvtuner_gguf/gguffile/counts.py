"""Numbers of a model's metadata: one, one for each layer, or a list of flags."""

from __future__ import annotations

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.reader import GgufHeader


def count(header: GgufHeader, key: str, default: int | None = None) -> int:
    """The value of ``key``; raises `KvtunerError` where it is no count, or missing without a ``default``."""
    value = header.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        found = "missing" if value is None else f"{value!r:.40}, not a count"
        raise KvtunerError(f"{header.path}: {header.name(key)} is {found}: this is no model that can be tuned")
    return value


def each_layer(header: GgufHeader, key: str, n_layer: int) -> tuple[int, ...]:
    """The value of ``key`` in each layer, of which metadata have one or a list."""
    value = header.get(key)
    if not isinstance(value, list):
        return (count(header, key),) * n_layer
    if len(value) != n_layer or not all(type(n) is int and n >= 0 for n in value):
        name = header.name(key)
        raise KvtunerError(f"{header.path}: {name} has {len(value)} entries, not one count per layer ({n_layer})")
    return tuple(value)


def flags(header: GgufHeader, key: str) -> list[bool] | None:
    """The list of ``key``, or None where it is none; raises `KvtunerError` where it holds other than whole numbers."""
    value = header.get(key)
    if not isinstance(value, list):
        return None
    if not all(isinstance(n, int) for n in value):
        raise KvtunerError(f"{header.path}: {header.name(key)} is no list of flags: this is no model that can be tuned")
    return [bool(n) for n in value]
