"""What ``llama-bench -o json`` has measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kvtuner_gguf.errors import KvtunerError, about


@dataclass(frozen=True)
class Speed:
    """Tokens per second with their standard deviation; ``test`` as llama-bench names it: ``pp512``, ``tg128 @ d4096``.

    ``cache``: the plan, or the types of a cache without one.
    """

    model: str
    cache: str
    test: str
    tokens_per_second: float
    spread: float


def is_speeds(data: object) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(one, Mapping) and "avg_ts" in one for one in data)


def speeds_from_json(data: list[Mapping[str, Any]]) -> list[Speed]:
    """Raises `KvtunerError` naming the entry that is damaged."""
    found = []
    for i, entry in enumerate(data):
        with about(f"entry {i}"):
            found.append(_speed(entry))
    return found


def _speed(entry: Mapping[str, Any]) -> Speed:
    cache = str(entry.get("kv_config", "none"))
    types = f"{entry.get('type_k')}/{entry.get('type_v')}"
    cache, model = types if cache == "none" else PurePath(cache).name, PurePath(str(entry.get("model_filename"))).name
    return Speed(model, cache, _test(entry), _number(entry, "avg_ts"), _number(entry, "stddev_ts"))


def _test(entry: Mapping[str, Any]) -> str:
    n_prompt, n_gen, n_depth = (int(_number(entry, name)) for name in ("n_prompt", "n_gen", "n_depth"))
    name = f"pp{n_prompt}+tg{n_gen}" if n_prompt and n_gen else f"tg{n_gen}" if n_gen else f"pp{n_prompt}"
    return f"{name} @ d{n_depth}" if n_depth else name


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise KvtunerError(f"'{name}' is no number of 0 or more: run llama-bench -o json again")
    return value
