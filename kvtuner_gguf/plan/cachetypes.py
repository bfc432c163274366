"""The cache types: the only place that knows their names, ggml numbers, block sizes and bits.

Bits are true bits per value, block scales included; payload bits, as in the KVTuner paper, leave the scales out.
Source: the type traits of ggml (``ggml/src/ggml.c``) at the pinned base; q3_nl and q2_nl are this project's, for caches
alone (``cpp/format/kvtuner-blocks.h``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvtuner_gguf.errors import KvtunerError, shown


@dataclass(frozen=True)
class CacheType:
    """One ggml type that a K or V cache can have."""

    name: str
    ggml_type: int
    block_size: int
    block_bytes: int

    @property
    def bits_per_value(self) -> float:
        return 8.0 * self.block_bytes / self.block_size

    @property
    def payload_bits(self) -> int:
        """Bits of a value's code alone: the number in the type's name."""
        return int(re.findall(r"\d+", self.name)[0])

    @property
    def is_quantized(self) -> bool:
        return self.block_size > 1

    def row_bytes(self, n_values: int) -> int:
        """Bytes of ``n_values`` values; raises `KvtunerError` where blocks do not fit."""
        if n_values % self.block_size:
            raise KvtunerError(
                f"{self.name} has blocks of {self.block_size} values, which do not divide {n_values}: "
                f"choose a type whose block does, for example f16"
            )
        return n_values // self.block_size * self.block_bytes


CACHE_TYPES: dict[str, CacheType] = {
    t.name: t
    for t in (
        CacheType("f32", 0, 1, 4),
        CacheType("f16", 1, 1, 2),
        CacheType("bf16", 30, 1, 2),
        CacheType("q8_0", 8, 32, 34),
        CacheType("q5_1", 7, 32, 24),
        CacheType("q5_0", 6, 32, 22),
        CacheType("q4_1", 3, 32, 20),
        CacheType("q4_0", 2, 32, 18),
        CacheType("iq4_nl", 20, 32, 18),
        CacheType("q3_nl", 44, 64, 26),
        CacheType("q2_nl", 43, 64, 18),
    )
}


def cache_type(name: str, role: str = "") -> CacheType:
    """The type called ``name``; raises `KvtunerError` for any other name, which says ``role`` of it."""
    found = CACHE_TYPES.get(name) if isinstance(name, str) else None
    if found is None:
        raise KvtunerError(f"unknown cache type {shown(name)}{role}: use one of {', '.join(CACHE_TYPES)}")
    return found
