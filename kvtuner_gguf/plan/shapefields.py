"""The fields of a model's shape in JSON: numbers for all layers, or one for each where layers differ.

``kvtuner_plan_shape_of`` in ``cpp/plan/kvtuner-plan-shape.cpp`` makes the same checks in the same order with the same
words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from kvtuner_gguf.errors import KvtunerError, shown

MAX_LAYERS = 4096
MAX_COUNT = (1 << 31) - 1

PerLayer = int | tuple[int, ...]
"""One number for all layers, or one for each where they differ."""


def one_or_all(values: Iterable[int]) -> PerLayer:
    """``values`` of the layers, as one number if they are the same."""
    every = tuple(values)
    return every[0] if len(set(every)) == 1 else every


def is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def shape_fields(data: object) -> dict[str, Any]:
    """The arguments of `ModelShape` from its JSON; raises `KvtunerError` naming the value that is wrong.

    ``window``, ``cache``, ``latent``, ``n_ctx`` and ``turned`` may be left out: no windows, and in every layer a cache
    of its own and centers that turn.
    """
    if not isinstance(data, Mapping):
        raise KvtunerError("'model' must be an object: tune the model again or remove the entry")
    n_layer = _count(data, "n_layer")
    if n_layer > MAX_LAYERS:
        raise KvtunerError(f"'model.n_layer' is {n_layer}, more than {MAX_LAYERS}: tune the model again")
    heads = data.get("n_head_kv")
    heads = _counts([heads] * n_layer if is_count(heads) else heads, "n_head_kv", n_layer)
    fields: dict[str, Any] = {
        "architecture": _text(data, "architecture") or "",
        "n_head_kv": heads,
        "head_dim_k": _per_layer(data, "head_dim_k", n_layer),
        "head_dim_v": _per_layer(data, "head_dim_v", n_layer),
        "fingerprint": _text(data, "fingerprint"),
    }
    if data.get("window") is not None:
        fields["window"] = _per_layer(data, "window", n_layer)
    if data.get("cache") is not None:
        fields["cache"] = _caches(data["cache"], n_layer)
    if data.get("latent") is not None:
        fields["latent"] = _flag(data, "latent")
    if data.get("n_ctx") is not None:
        fields["n_ctx"] = _count(data, "n_ctx")
    if data.get("turned") is not None:
        fields["turned"] = _per_layer(data, "turned", n_layer)
    return fields


def _count(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if not is_count(value):
        raise KvtunerError(f"'model.{key}' is {shown(value)}, not a count: tune the model again")
    return value


def _counts(values: object, key: str, n_layer: int) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(is_count(n) for n in values) or len(values) != n_layer:
        raise KvtunerError(f"'model.{key}' must be one count per layer ({n_layer}): tune the model again")
    return tuple(values)


def _per_layer(data: Mapping[str, Any], key: str, n_layer: int) -> PerLayer:
    value = data.get(key)
    return one_or_all(_counts(value, key, n_layer)) if isinstance(value, list | tuple) else _count(data, key)


def _caches(values: object, n_layer: int) -> tuple[int | None, ...]:
    if not isinstance(values, list | tuple) or len(values) != n_layer or not all(_is_layer(n, n_layer) for n in values):
        raise KvtunerError(f"'model.cache' must be one layer or null per layer ({n_layer}): tune the model again")
    return tuple(values)


def _is_layer(value: object, n_layer: int) -> bool:
    return value is None or (is_count(value) and value < n_layer)


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key)
    if not isinstance(value, bool):
        raise KvtunerError(f"'model.{key}' is {shown(value)}, not true or false: tune the model again")
    return value


def _text(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise KvtunerError(f"'model.{key}' is {shown(value)}, no text: tune the model again")
    return value
