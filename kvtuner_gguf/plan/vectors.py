"""What a plan has for each channel of the keys of a layer: float16 vectors, one per layer."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair

FLOAT16 = np.dtype("<f2")
BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")

Of = TypeVar("Of", bound="Vectors")


@dataclass(frozen=True)
class Vectors:
    """``k[il]``: float16 values, little-endian, [KV heads, head size] in one piece; empty without one.

    Channels are in the order of the runtime's cache. A vector of zeros is none. Raises `KvtunerError` for what cannot
    be such values. ``what`` is what messages call one.
    """

    k: tuple[bytes, ...]

    what: ClassVar[str]

    def __post_init__(self) -> None:
        for il, raw in enumerate(self.k):
            self.check_raw(raw, il)

    @property
    def n_layer(self) -> int:
        return len(self.k)

    def array_k(self, il: int) -> np.ndarray | None:
        """float32 [KV heads * head size], or None for a layer without a vector."""
        return _floats(self.k[il]) if self.k[il] else None

    def of_quantized(self: Of, pairs: Sequence[Pair]) -> Of | None:
        """Those of the layers whose K ``pairs`` quantizes: elsewhere one gains nothing and costs an operation."""
        kept = tuple(raw if pair.types[0].is_quantized else b"" for raw, pair in zip(self.k, pairs, strict=True))
        return replace(self, k=kept) if any(kept) else None

    def check(self, sizes_k: Sequence[int]) -> None:
        """Raise `KvtunerError` unless every vector has as many values as its layer's row has."""
        for il, (raw, size) in enumerate(zip(self.k, sizes_k, strict=True)):
            if raw and len(raw) != FLOAT16.itemsize * size:
                raise KvtunerError(
                    f"layer {il}: the K {self.what} has {len(raw) // FLOAT16.itemsize} values, the layer {size}: "
                    "use a plan that was tuned for this model"
                )

    @classmethod
    def check_raw(cls, raw: bytes, il: int) -> None:
        """Raise `KvtunerError` naming layer ``il`` where ``raw`` is no vector."""
        if len(raw) % FLOAT16.itemsize:
            raise KvtunerError(
                f"layer {il}: the K {cls.what} has {len(raw)} bytes, which are no float16 values: tune the model again"
            )
        if not np.isfinite(np.frombuffer(raw, FLOAT16)).all():
            raise KvtunerError(f"layer {il}: the K {cls.what} holds a value that is no number: tune the model again")

    @classmethod
    def decode(cls, text: object, il: int) -> bytes:
        """The bytes of one vector in a plan's JSON; None is none. Raises `KvtunerError` naming the layer."""
        if text is None:
            return b""
        if not isinstance(text, str) or len(text) % 4 or not BASE64.fullmatch(text):
            raise KvtunerError(f"layer {il}: the K {cls.what} is no base64: tune the model again")
        return cls._unless_zero(base64.b64decode(text), il)

    @classmethod
    def from_flat(cls, values: np.ndarray, sizes: Sequence[int]) -> list[bytes]:
        """The vectors of all layers out of ``values`` [all layers in one piece], the form that a GGUF file has."""
        if len(values) != sum(sizes):
            raise KvtunerError(
                f"the K {cls.what}s have {len(values)} values, the model's layers {sum(sizes)}: "
                "annotate the model again"
            )
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return [cls._unless_zero(_float16(part), il) for il, part in enumerate(parts)]

    @classmethod
    def _unless_zero(cls, raw: bytes, il: int) -> bytes:
        """``raw``, the bytes of layer ``il``, checked; nothing for zeros."""
        found = unless_zero(raw)
        cls.check_raw(found, il)
        return found


def encode(raw: bytes) -> str:
    """A vector in a plan's JSON."""
    return base64.b64encode(raw).decode()


def flat_float32(vectors: Sequence[bytes], sizes: Sequence[int]) -> np.ndarray:
    """All layers in one piece, zeros for a layer without a vector: the form that a GGUF file has."""
    parts = [_floats(raw) if raw else np.zeros(size, np.float32) for raw, size in zip(vectors, sizes, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def as_vectors(arrays: Iterable[np.ndarray | None]) -> tuple[bytes, ...]:
    """One array per layer, of any shape; None for a layer without a vector."""
    return tuple(b"" if values is None else unless_zero(_float16(values)) for values in arrays)


def unless_zero(raw: bytes) -> bytes:
    """``raw``, or nothing for a vector of zeros, which is none."""
    whole = len(raw) % FLOAT16.itemsize == 0
    return b"" if whole and not np.frombuffer(raw, FLOAT16).any() else raw


def _float16(values: np.ndarray) -> bytes:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return np.asarray(values).ravel().astype(FLOAT16).tobytes()


def _floats(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, FLOAT16).astype(np.float32)
