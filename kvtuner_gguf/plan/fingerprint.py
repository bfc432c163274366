"""The fingerprint of a plan; ``cpp/plan/kvtuner-fingerprint.cpp`` computes the same."""

from __future__ import annotations

from collections.abc import Sequence

from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.plan.vectors import Vectors


def fingerprint(
    schema: str, pairs: Sequence[Pair], centers: Centers | None, scales: Scales | None, ends: Ends | None
) -> str:
    """16 hex digits over the types, centers and scales of all layers, then the span of the centers and the ends.

    Whatever else a plan comes to hold of a layer is appended to the layer's entry, and what it holds as a whole follows
    all layers, so that plans without it keep theirs.
    """
    entries = [f"{il}:{pair}{_digest(centers, il)}{_digest(scales, il)}" for il, pair in enumerate(pairs)]
    if centers is not None and centers.span is not None:
        entries.append(f"center_span={centers.span}")
    if ends is not None:
        entries.append(f"ends={ends}")
    return f"{fnv1a_64(';'.join((schema, *entries)).encode()):016x}"


def fnv1a_64(data: bytes) -> int:
    """The 64-bit FNV-1a hash (Fowler, Noll, Vo)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def _digest(vectors: Vectors | None, il: int) -> str:
    values = None if vectors is None else vectors.array_k(il)
    if vectors is None or values is None:
        return ""
    return f";{vectors.what}_k={fnv1a_64(values.astype('<f4').tobytes()):016x}"
