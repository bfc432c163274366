"""Bytes of plans, layer by layer, as the layers weigh: per token where no layer has a sliding window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape

LayerPairs = Sequence[Sequence[Pair]]
"""The pairs that each layer may have."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of each pair in each layer, by the weight of the layer (`ModelShape.weights`)."""

    shape: ModelShape

    def pair(self, il: int, pair: Pair) -> int:
        layer, (k, v) = self.shape.layers[il], pair.types
        return self.shape.weights[il] * (k.row_bytes(layer.kept_k) + v.row_bytes(layer.kept_v))

    def plan(self, pairs: Sequence[Pair]) -> int:
        return sum(self.pair(il, pair) for il, pair in enumerate(pairs))

    def budget(self, bits: float) -> int:
        """Bytes of ``bits`` true bits per value."""
        return math.floor(bits * self.shape.n_values / 8 + 1e-6)

    def bits(self, n_bytes: int) -> float:
        """True bits per value of ``n_bytes``."""
        return 8 * n_bytes / max(1, self.shape.n_values)

    def range(self, candidates: LayerPairs) -> tuple[int, int]:
        """Bytes of the smallest and of the largest plan."""
        sizes = [[self.pair(il, pair) for pair in layer] for il, layer in enumerate(candidates)]
        return sum(map(min, sizes)), sum(map(max, sizes))
