"""Bytes of plans, layer by layer: per token where no contexts are told apart by ends, centers or windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvtuner_gguf.plan.centers import n_blocks
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.vectors import FLOAT16

LayerPairs = Sequence[Sequence[Pair]]
"""The pairs that each layer may have."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of each pair in each layer of a context of ``shape.n_ctx`` tokens, in which ends and windows count.

    ``n_rows``: exact rows that a layer with ``ends`` keeps, by default the first and last positions of one sequence.
    ``span``: that of the centers, of which layers with quantized keys have a table where they turn. Without ends and
    span what all layers have in common is left out (`ModelShape.weights`).
    """

    shape: ModelShape
    ends: Ends | None = None
    n_rows: int | None = None
    span: int | None = None

    @cached_property
    def _cells(self) -> tuple[int, ...]:
        return self.shape.cells(ContextSize(self.n_ctx)) if self._in_context else self.shape.weights

    @property
    def _in_context(self) -> bool:
        return self.ends is not None or self.span is not None

    @property
    def beside(self) -> str:
        """What counts beside the types, ``"ends 4+128:q8_0 and turned centers"``; empty where nothing does."""
        ends = [] if self.ends is None else [f"ends {self.ends}"]
        return " and ".join(ends if self.span is None else [*ends, "turned centers"])

    @property
    def n_ctx(self) -> int:
        return self.shape.n_ctx

    @property
    def unit(self) -> int:
        """Bytes of the context that each byte here stands for."""
        return 1 if self._in_context else math.gcd(*self.shape.cells(ContextSize(self.n_ctx))) or 1

    def pair(self, il: int, pair: Pair) -> int:
        layer, (k, v) = self.shape.layers[il], pair.types
        n_bytes = self._cells[il] * (k.row_bytes(layer.kept_k) + v.row_bytes(layer.kept_v))
        if self.ends is not None:
            n_rows = self.ends.n_positions if self.n_rows is None else self.n_rows
            n_bytes += n_rows * self.ends.row_bytes(pair, layer)
        if k.is_quantized and layer.turned:
            n_bytes += self._n_blocks * FLOAT16.itemsize * layer.kept_k
        return n_bytes

    @cached_property
    def _n_blocks(self) -> int:
        return n_blocks(self.span, ContextSize(self.n_ctx).cells_of_sequence)

    def plan(self, pairs: Sequence[Pair]) -> int:
        return sum(self.pair(il, pair) for il, pair in enumerate(pairs))

    def budget(self, bits: float) -> int:
        """Bytes of ``bits`` true bits per value, ends and centers included."""
        return math.floor(bits * self._n_values / 8 + 1e-6)

    def bits(self, n_bytes: int) -> float:
        """True bits per value of ``n_bytes``."""
        return 8 * n_bytes / max(1, self._n_values)

    @property
    def _n_values(self) -> int:
        return self.shape.n_cached(self._cells)

    def range(self, candidates: LayerPairs) -> tuple[int, int]:
        """Bytes of the smallest and of the largest plan."""
        sizes = [[self.pair(il, pair) for pair in layer] for il, layer in enumerate(candidates)]
        return sum(map(min, sizes)), sum(map(max, sizes))
