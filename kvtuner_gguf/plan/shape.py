"""What of a model decides the size of its KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvtuner_gguf.errors import KvtunerError, shown

MAX_LAYERS = 4096
MAX_COUNT = (1 << 31) - 1


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides the size of its KV cache. Layers without KV have 0 heads."""

    architecture: str
    n_head_kv: tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    fingerprint: str | None = None

    @property
    def n_layer(self) -> int:
        return len(self.n_head_kv)

    @property
    def sizes_k(self) -> list[int]:
        """Values of K that a token has in each layer."""
        return [heads * self.head_dim_k for heads in self.n_head_kv]

    @property
    def sizes_v(self) -> list[int]:
        """Values of V that a token has in each layer."""
        return [heads * self.head_dim_v for heads in self.n_head_kv]

    @property
    def n_values(self) -> int:
        """Values that a token has in all caches."""
        return sum(self.sizes_k) + sum(self.sizes_v)

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "n_layer": self.n_layer,
            "n_head_kv": list(self.n_head_kv),
            "head_dim_k": self.head_dim_k,
            "head_dim_v": self.head_dim_v,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, data: object) -> ModelShape:
        if not isinstance(data, Mapping):
            raise KvtunerError("'model' must be an object: tune the model again or remove the entry")
        heads = data.get("n_head_kv")
        n_layer = _count(data, "n_layer")
        if n_layer > MAX_LAYERS:
            raise KvtunerError(f"'model.n_layer' is {n_layer}, more than {MAX_LAYERS}: tune the model again")
        if isinstance(heads, int):
            heads = [heads] * n_layer
        if not isinstance(heads, list | tuple) or not all(is_count(h) for h in heads) or len(heads) != n_layer:
            raise KvtunerError(f"'model.n_head_kv' must be one count per layer ({n_layer}): tune the model again")
        return cls(
            architecture=_text(data, "architecture") or "",
            n_head_kv=tuple(heads),
            head_dim_k=_count(data, "head_dim_k"),
            head_dim_v=_count(data, "head_dim_v"),
            fingerprint=_text(data, "fingerprint"),
        )


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _count(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if not is_count(value):
        raise KvtunerError(f"'model.{key}' is {shown(value)}, not a count: tune the model again")
    return value


def _text(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise KvtunerError(f"'model.{key}' is {shown(value)}, no text: tune the model again")
    return value
