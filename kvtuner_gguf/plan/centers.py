"""The centers of a plan: what is taken off every key of a layer before it is written to the cache.

In exact arithmetic a center changes nothing, since the softmax over keys does not see it, so any vector is right; a
good one leaves less to lose in few bits. Values have none: ``configs/centering.md`` has the reason.

RoPE turns what keys have in common from position to position. With a *span* the centers are those of the positions
from 0 to span - 1, and the keys of a later block of so many positions lose their layer's center as RoPE turns it by the
block's first position.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shapefields import is_count

MIN_SPAN, MAX_SPAN = 16, 1 << 16
# configs/centering.md has the losses with others
DEFAULT_SPAN = 256
FLOAT16 = np.dtype("<f2")
BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


@dataclass(frozen=True)
class Centers:
    """``k[il]``: float16 values, little-endian, [KV heads, head size] in one piece; empty without one.

    Channels are in the order of the runtime's cache. ``span``: positions of a block, a power of two; None where one
    center serves all positions. Raises `KvtunerError` for what cannot be such values, and for a span without a center.
    """

    k: tuple[bytes, ...]
    span: int | None = None

    def __post_init__(self) -> None:
        for il, raw in enumerate(self.k):
            _check(raw, il)
        if self.span is not None:
            _check_span(self.span)
            if not any(self.k):
                raise KvtunerError("center_span is given, and no layer has a center: leave it out")

    @classmethod
    def from_arrays(cls, k: Iterable[np.ndarray | None], span: int | None = None) -> Centers:
        """From one array per layer, of any shape; None for a layer without a center."""
        return cls(tuple(map(_raw, k)), span)

    @property
    def n_layer(self) -> int:
        return len(self.k)

    def array_k(self, il: int) -> np.ndarray | None:
        """float32 [KV heads * head size], or None for a layer without a center."""
        return _array(self.k[il])

    def of_quantized(self, pairs: Sequence[Pair]) -> Centers | None:
        """Those of the layers that ``pairs`` quantizes: elsewhere a center gains nothing and costs an operation."""
        kept = tuple(raw if pair.types[0].is_quantized else b"" for raw, pair in zip(self.k, pairs, strict=True))
        return Centers(kept, self.span) if any(kept) else None

    def check(self, sizes_k: Sequence[int]) -> None:
        """Raise `KvtunerError` unless every center has as many values as its layer's row has."""
        for il, (raw, size) in enumerate(zip(self.k, sizes_k, strict=True)):
            if raw and len(raw) != FLOAT16.itemsize * size:
                raise KvtunerError(
                    f"layer {il}: the K center has {len(raw) // FLOAT16.itemsize} values, the layer {size}: "
                    "use a plan that was tuned for this model"
                )


def centers_or_none(k: Iterable[bytes], span: Any = None) -> Centers | None:
    """The centers ``k`` of all layers, as a file has them; None where no layer has one and no ``span`` is given."""
    k = tuple(k)
    return Centers(k, span) if any(k) or span is not None else None


def encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def decode(text: object, il: int) -> bytes:
    """The bytes of one center in a plan's JSON; None is no center. Raises `KvtunerError` naming the layer."""
    if text is None:
        return b""
    if not isinstance(text, str) or len(text) % 4 or not BASE64.fullmatch(text):
        raise KvtunerError(f"layer {il}: the K center is no base64: tune the model again")
    raw = base64.b64decode(text)
    _check(raw, il)
    return unless_zero(raw)


def _check(raw: bytes, il: int) -> None:
    if len(raw) % FLOAT16.itemsize:
        raise KvtunerError(
            f"layer {il}: the K center has {len(raw)} bytes, which are no float16 values: tune the model again"
        )
    if not np.isfinite(np.frombuffer(raw, FLOAT16)).all():
        raise KvtunerError(f"layer {il}: the K center holds a value that is no number: tune the model again")


def _check_span(span: object) -> None:
    if not is_count(span) or not MIN_SPAN <= span <= MAX_SPAN or span & (span - 1):
        raise KvtunerError(f"the center span is {shown(span)}: give a power of two from {MIN_SPAN} to {MAX_SPAN}")


def flat_float32(vectors: Sequence[bytes], sizes: Sequence[int]) -> np.ndarray:
    """All layers in one piece, zeros for a layer without a center: the form that a GGUF file has."""
    parts = [_floats(raw) if raw else np.zeros(size, np.float32) for raw, size in zip(vectors, sizes, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def from_flat(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The layers out of ``values`` [all layers in one piece]."""
    if len(values) != sum(sizes):
        raise KvtunerError(
            f"the K centers have {len(values)} values, the model's layers {sum(sizes)}: annotate the model again"
        )
    return np.split(values, np.cumsum(sizes)[:-1])


def raw_vector(values: np.ndarray, il: int) -> bytes:
    """The float16 bytes of layer ``il``; nothing for zeros. Raises `KvtunerError` where they cannot be such."""
    raw = _raw(values)
    _check(raw, il)
    return raw


def unless_zero(raw: bytes) -> bytes:
    """``raw``, or nothing for a center of zeros, which is none."""
    return raw if np.frombuffer(raw, FLOAT16).any() else b""


def _raw(values: np.ndarray | None) -> bytes:
    if values is None:
        return b""
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return unless_zero(np.asarray(values).ravel().astype(FLOAT16).tobytes())


def _array(raw: bytes) -> np.ndarray | None:
    return _floats(raw) if raw else None


def _floats(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, FLOAT16).astype(np.float32)
