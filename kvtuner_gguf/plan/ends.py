"""The exact ends of a plan: positions whose keys and values are read as they were before quantization.

A query at position t reads the first ``first`` positions and the last ``last`` (t - last < p <= t) from rows of
``type``, all others from the quantized cache. ``cpp/plan/kvtuner-plan-ends.cpp`` makes the same checks in the same
order with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import LayerShape
from kvtuner_gguf.plan.shapefields import is_count

# so that rows of 256 sequences are still counted in 32 bits
MAX_END = 1 << 20
TYPES = ("f16", "q8_0")
# tokens of the context in which a plan's ends are counted unless another is given
ENDS_CTX = 8192


@dataclass(frozen=True)
class Ends:
    """``first`` and ``last`` in positions, not both 0; ``type`` is f16 or q8_0.

    Raises `KvtunerError` for anything else.
    """

    first: int
    last: int
    type: str = "f16"

    def __post_init__(self) -> None:
        for end, n in (("first", self.first), ("last", self.last)):
            if not is_count(n) or n > MAX_END:
                raise KvtunerError(f"the ends have {shown(n)} {end} positions: give a whole number of 0 to {MAX_END}")
        if not self.n_positions:
            raise KvtunerError("the ends have neither first nor last positions: leave them out")
        if self.type not in TYPES:
            raise KvtunerError(f"unknown type {shown(self.type)} for the ends: use {' or '.join(TYPES)}")

    def __str__(self) -> str:
        """As in the fingerprint of a plan: ``4+32:f16``."""
        return f"{self.first}+{self.last}:{self.type}"

    @property
    def n_positions(self) -> int:
        """Positions of both ends together."""
        return self.first + self.last

    def row_bytes(self, pair: Pair, layer: LayerShape) -> int:
        """Bytes of the exact K and V of one position in a layer with this pair; 0 for a layer without ends."""
        if not has_ends(pair, layer):
            return 0
        exact = cache_type(self.type)
        return exact.row_bytes(layer.kept_k) + exact.row_bytes(layer.kept_v)

    def check(self, il: int, pair: Pair, layer: LayerShape) -> None:
        """Raise `KvtunerError` unless layer ``il`` with this pair goes without ends, or can store them."""
        if has_ends(pair, layer):
            self.check_heads(il, layer)

    def check_heads(self, il: int, layer: LayerShape) -> None:
        """Raise `KvtunerError` unless the heads of layer ``il`` can be stored in the type of the ends."""
        block = cache_type(self.type).block_size
        for side, size in (("K", layer.head_dim_k), ("V", layer.head_dim_v)):
            if size % block:
                raise KvtunerError(
                    f"layer {il}: {side} ends of type {self.type} have blocks of {block} values, "
                    f"which do not divide the head size {size}: use f16 for the ends"
                )

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "type": self.type}

    @classmethod
    def from_json(cls, data: object) -> Ends | None:
        """The ends in a plan's JSON; None is no ends. Raises `KvtunerError` naming the value that is wrong."""
        if data is None:
            return None
        if not isinstance(data, Mapping):
            raise KvtunerError("'ends' must be an object of {first, last, type}: see configs/plan.schema.json")
        values: list[Any] = [data.get(name) for name in ("first", "last", "type")]
        return cls(*values)


def has_ends(pair: Pair, layer: LayerShape) -> bool:
    """Whether a layer with this pair keeps exact rows, where the plan has ends.

    It does where it keeps a quantized cache of its own and sees all positions. A layer with a window goes without, and
    so does one with latent attention, whose cache has no V.
    """
    return can_have_ends(layer) and any(side.is_quantized for side in pair.types)


def can_have_ends(layer: LayerShape) -> bool:
    """Whether a layer keeps exact rows with a quantized pair."""
    return layer.keeps and not layer.window and not layer.latent
