"""Stage 0, the centers: what keys (after RoPE) and values have in common over the calibration text.

Keys of some models carry a large constant in the channels that RoPE hardly turns (the key bias of Qwen2): it takes the
levels that a quantized cache has for the differences between keys, which are all that attention sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvtuner_gguf.centers import Centers
from kvtuner_gguf.tuning.reference import Reference


def measure_centers(
    reference: Reference, tokens: Tensor, progress: Callable[[int, int], None] | None = None
) -> Centers:
    """The mean key and the mean value of every layer, KV head and channel over ``tokens`` [chunks, context].

    Sums run in float64. Every position of a chunk counts the same, so long chunks speak for long contexts.
    """
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        keys.append(_mean(reference.cache.runtime_order(key)))
        values.append(_mean(value))
        if progress:
            progress(il + 1, reference.n_layer)

    reference.run(reference.embed(tokens), capture=measure)
    return Centers.from_arrays((k.numpy() for k in keys), (v.numpy() for v in values))


def _mean(x: Tensor) -> Tensor:
    """[batch, KV heads, tokens, head size] -> [KV heads, head size]."""
    return x.to(torch.float64).mean((0, 2))
