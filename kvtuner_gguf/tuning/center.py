"""Stage 0, the centers: what keys (after RoPE) and values have in common over the calibration text.

Keys of some models carry a large constant in the channels that RoPE hardly turns (the key bias of Qwen2): it takes the
levels that a quantized cache has for the differences between keys, which are all that attention sees. Their center is
the mean over all positions.

Values have no such constant, and the value of the first token, which attention returns to all the time, is next to
zero: taken off by the plain mean it would have an error where it had none. Their center is the mean weighted by the
squares of the attention weights, with which rounding errors enter the output. At 4 bits and more it gains too little to
pay for its operations, so that plans have it only where it is asked for; ``configs/centering.md`` has the numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.calibration import calibrate

# query rows at a time, so that long chunks need no square of their length
ROWS = 512


def measure_centers(
    engine: Engine,
    tokens: Tensor,
    with_values: bool = False,
    progress: Progress | None = None,
) -> tuple[Centers, KeySpread]:
    """The center of the keys of every layer, KV head and channel over ``tokens`` [chunks, context], and of the values.

    Sums run in float64. Every position of a chunk counts the same, so long chunks speak for long contexts.
    """
    keys: list[np.ndarray] = []
    values: list[np.ndarray | None] = []
    spread: list[tuple[float, ...]] = []

    def measure(il: int, used: Attention) -> None:
        center = used.key.double().mean((0, 2))
        keys.append(center.cpu().numpy())
        values.append(weighted_mean(used).cpu().numpy() if with_values else None)
        spread.append(_spread(used.key, center))
        if progress:
            progress(il + 1, engine.shape.n_layer)

    engine.capture(tokens, measure)
    return Centers.from_arrays(keys, values), KeySpread(*zip(*spread, strict=True))


def center_plan(
    engine: Engine,
    plan: Plan,
    text: Path,
    n_tokens: int,
    n_ctx: int,
    seed: int = 0,
    with_values: bool = False,
    progress: Progress | None = None,
) -> tuple[Plan, KeySpread]:
    """``plan``, whose model ``engine`` runs, with the centers of that on ``text`` where it quantizes.

    Raises `KvtunerError` where the model cannot be loaded or the text is too short.
    """
    texts = calibrate(text, engine.tokenize, n_tokens, n_ctx, seed)
    centers, spread = measure_centers(engine, texts.tuning, with_values, progress)
    facts = {"text": texts.name, "text_sha256": texts.sha256, "text_tokens": texts.n_tokens, "n_ctx": n_ctx}
    provenance = {**plan.provenance, **facts, "seed": seed, "keys": spread.to_json()}
    return replace(plan, centers=centers.of_quantized(plan.pairs), provenance=provenance), spread


def _spread(key: Tensor, center: Tensor) -> tuple[float, ...]:
    """The fields of `KeySpread` for one layer."""
    centered = key - center[:, None].to(key)
    sizes = [(x.abs().max().item(), x.double().square().mean().sqrt().item()) for x in (key, centered)]
    return tuple(value for pair in zip(*sizes, strict=True) for value in pair)


def weighted_mean(used: Attention) -> Tensor:
    """The center [KV heads, head size] of the values of one layer."""
    value = used.value
    total = value.new_zeros(value.shape[1], value.shape[3], dtype=torch.float64)
    weight = value.new_zeros(value.shape[1], 1, dtype=torch.float64)
    for q, k, v in zip(used.summed(used.query), used.summed(used.key), value, strict=True):
        weights = _squared_attention(used, q.unflatten(0, (k.shape[0], -1)), k)
        total += torch.einsum("ht,htc->hc", weights, v.double())
        weight += weights.sum(1, keepdim=True)
    return total / weight


def _squared_attention(used: Attention, query: Tensor, key: Tensor) -> Tensor:
    """The sum of the squared attention weights that each token gets, [KV heads, tokens], float64.

    ``query`` [KV heads, query heads of each, tokens, head size], ``key`` [KV heads, tokens, head size].
    """
    weights = key.new_zeros(key.shape[:2], dtype=torch.float64)
    for rows in torch.arange(key.shape[1]).split(ROWS):
        products = query[:, :, rows[0] : rows[-1] + 1] @ key[:, None].transpose(-1, -2)
        weights += used.weights(products, rows).square().sum((1, 2)).double()
    return weights
