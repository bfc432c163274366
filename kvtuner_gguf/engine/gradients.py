"""How the predictions of the exact model depend on what attention reads from its cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kvtuner_gguf.engine.attention import Rope


@dataclass(frozen=True)
class Gradients:
    """Of a chunk and a layer: its ``tokens`` [context], what it writes to its cache, and gradients by what it reads.

    ``key`` and ``value`` are [1, KV heads, tokens, head size], channels in the order of the runtime's; ``by_key`` and
    ``by_value`` have several draws in place of the 1. A draw gives each scored token a label, as the model expects it;
    its gradient is that of the sum of the labels' log-probabilities. Its product with errors of the cache has twice
    their KLD as its mean square, to second order (the Fisher information). Exact ends have no part in it.
    ``rope`` is what has turned the keys, from position 0 on.
    """

    tokens: Tensor
    key: Tensor
    value: Tensor
    by_key: Tensor
    by_value: Tensor
    rope: Rope


SeeGradients = Callable[[int, Gradients], None]
"""Called with a layer and its gradients."""
