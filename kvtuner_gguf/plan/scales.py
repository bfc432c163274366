"""The scales of a plan: by what every key of a layer is multiplied before it is written to the cache.

Queries are divided by them, so in exact arithmetic they change nothing. Both channels of a pair that RoPE turns have
the same scale, which commutes with RoPE: a context shift turns scaled keys. A good one gives the channels that queries
make more of a larger share of the levels of a quantized cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.vectors import FLOAT16, Vectors, as_vectors


@dataclass(frozen=True)
class Scales(Vectors):
    """`Vectors` of factors above 0. A plan's centers are those of keys without their scale."""

    what: ClassVar[str] = "scale"

    @classmethod
    def from_arrays(cls, k: Iterable[np.ndarray | None]) -> Scales:
        """From one array per layer, of any shape; None for a layer without a scale."""
        return cls(as_vectors(k))

    @classmethod
    def check_raw(cls, raw: bytes, il: int) -> None:
        super().check_raw(raw, il)
        if not (np.frombuffer(raw, FLOAT16) > 0).all():
            raise KvtunerError(f"layer {il}: the K scale holds a value that is not above 0: tune the model again")


def scales_or_none(k: Iterable[bytes]) -> Scales | None:
    """The scales ``k`` of all layers, as a file has them; None where no layer has one."""
    k = tuple(k)
    return Scales(k) if any(k) else None
