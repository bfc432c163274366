"""The K and the V cache type of one layer."""

from __future__ import annotations

from dataclasses import dataclass

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import CacheType, cache_type


@dataclass(frozen=True, order=True)
class Pair:
    """The K and the V cache type of one layer."""

    k: str
    v: str

    def __post_init__(self) -> None:
        cache_type(self.k, " for K")
        cache_type(self.v, " for V")

    def __str__(self) -> str:
        return f"{self.k}/{self.v}"

    @classmethod
    def parse(cls, text: str) -> Pair:
        """``"q8_0/q4_0"`` is K q8_0 and V q4_0; one name alone stands for both."""
        names = text.split("/")
        if len(names) > 2:
            raise KvtunerError(f"{text!r} is no pair of cache types: write K/V, for example q8_0/q4_0")
        return cls(names[0], names[-1])

    @property
    def types(self) -> tuple[CacheType, CacheType]:
        return cache_type(self.k), cache_type(self.v)

    @property
    def bits_per_value(self) -> float:
        """Mean of K and V, for heads of equal size."""
        k, v = self.types
        return (k.bits_per_value + v.bits_per_value) / 2

    @property
    def payload_bits(self) -> float:
        """Mean of K and V, as the paper counts."""
        k, v = self.types
        return (k.payload_bits + v.payload_bits) / 2


# what loses nothing: the cache type that judges and prices compare with
UNQUANTIZED = "f32"
EXACT = Pair(UNQUANTIZED, UNQUANTIZED)
# the cache of a model without a plan
F16 = Pair("f16", "f16")
