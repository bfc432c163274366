"""A table of the KVTuner paper (arXiv 2502.04420, ICML 2025): bits of K and V per layer, and the plan that it gives.

Bits are the paper's: those of the codes alone, without scales and offsets and without its window in 16 bits.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.typed import typed_type

SOURCE = "KVTuner, arXiv 2502.04420"
NOTE = "from the paper, not measured with these types"
DEFAULT_TYPES = "8=q8_0,4=q4_0,2=q2_nl"
MAX_BITS = 16


@dataclass(frozen=True)
class BitsTable:
    """``k[il]`` and ``v[il]`` are the payload bits of layer ``il``, 1 to 16; ``facts`` say where they are from.

    Raises `KvtunerError` naming the layer and the side whose bits are none.
    """

    k: tuple[int, ...]
    v: tuple[int, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    shape: ModelShape | None = None

    def __post_init__(self) -> None:
        for il, side, bits in self._entries():
            if type(bits) is not int or not 1 <= bits <= MAX_BITS:
                raise KvtunerError(
                    f"layer {il}: {side} has {reprlib.repr(bits)} bits: give a whole number from 1 to {MAX_BITS}"
                )

    def _entries(self) -> list[tuple[int, str, int]]:
        sides = zip(self.k, self.v, strict=True)
        return [entry for il, (k, v) in enumerate(sides) for entry in ((il, "K", k), (il, "V", v))]

    @property
    def mean_bits(self) -> float:
        """The paper's measure: all layers and both sides weigh the same."""
        return (sum(self.k) + sum(self.v)) / (2 * len(self.k))

    def plan(self, types: Mapping[int, str]) -> Plan:
        """The plan with ``types[bits]`` for each side of each layer; raises `KvtunerError` where there is no such type.

        Its model is the table's, if known; its provenance has yet to come from `described`.
        """
        for il, side, bits in self._entries():
            if bits not in types:
                raise KvtunerError(
                    f"layer {il}: {side} has {bits} bits, for which there is no cache type: add {bits}=TYPE to --types"
                )
        pairs = tuple(Pair(types[k], types[v]) for k, v in zip(self.k, self.v, strict=True))
        return Plan(pairs, self.shape)

    def described(self, plan: Plan) -> Plan:
        """``plan`` with the provenance of this table: what the paper says of it, payload bits and true bits."""
        facts = {"source": SOURCE, "note": NOTE, **self.facts}
        bits = {"payload_bits": round(self.mean_bits, 4), "true_bits": round(plan.bits_per_value(), 4)}
        return replace(plan, provenance=facts | bits)


def parse_types(text: str | None = None) -> dict[int, str]:
    """``"2=q3_nl"`` over the defaults: the cache type for each number of payload bits. Raises `KvtunerError`."""
    return _types(DEFAULT_TYPES) | ({} if text is None else _types(text))


def _types(text: str) -> dict[int, str]:
    types: dict[int, str] = {}
    for item in text.split(","):
        bits, _, name = (part.strip() for part in item.partition("="))
        if not name or bits not in map(str, range(1, MAX_BITS + 1)):
            raise KvtunerError(f"{item!r:.40} gives no type to bits: write BITS=TYPE, for example {DEFAULT_TYPES}")
        if int(bits) in types:
            raise KvtunerError(f"there are two types for {bits} bits: keep one")
        types[int(bits)] = typed_type(name).name
    return types
