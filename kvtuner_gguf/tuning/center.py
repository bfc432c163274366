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

from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.calibration import calibrate

# query rows at a time, so that long chunks need no square of their length
ROWS = 512


def measure_centers(
    reference: Reference,
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

    def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        order = reference.cache.runtime_order
        center = order(key).double().mean((0, 2))
        keys.append(center.cpu().numpy())
        values.append(weighted_mean(query, key, value).cpu().numpy() if with_values else None)
        spread.append(_spread(order(key), center))
        if progress:
            progress(il + 1, reference.n_layer)

    reference.run(reference.embed(tokens), capture=measure)
    return Centers.from_arrays(keys, values), KeySpread(*zip(*spread, strict=True))


def center_plan(
    model: Path,
    plan: Plan,
    text: Path,
    n_tokens: int,
    n_ctx: int,
    seed: int = 0,
    with_values: bool = False,
    progress: Progress | None = None,
) -> tuple[Plan, KeySpread]:
    """``plan``, whose model shape is known, with the centers of ``model`` on ``text`` where it quantizes.

    Raises `KvtunerError` where torch cannot load the model or the text is too short.
    """
    reference = Reference(model, plan.model.architecture)
    texts = calibrate(text, reference.tokenize, n_tokens, n_ctx, seed)
    centers, spread = measure_centers(reference, texts.tuning, with_values, progress)
    facts = {"text": texts.name, "text_sha256": texts.sha256, "text_tokens": texts.n_tokens, "n_ctx": n_ctx}
    provenance = {**plan.provenance, **facts, "seed": seed, "keys": spread.to_json()}
    return replace(plan, centers=centers.of_quantized(plan.pairs), provenance=provenance), spread


def _spread(key: Tensor, center: Tensor) -> tuple[float, ...]:
    """The fields of `KeySpread` for one layer."""
    centered = key - center[:, None].to(key)
    sizes = [(x.abs().max().item(), x.double().square().mean().sqrt().item()) for x in (key, centered)]
    return tuple(value for pair in zip(*sizes, strict=True) for value in pair)


def weighted_mean(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The center [KV heads, head size] of one layer's ``value``; all [batch, heads, tokens, head size]."""
    total = value.new_zeros(value.shape[1], value.shape[3], dtype=torch.float64)
    weight = value.new_zeros(value.shape[1], 1, dtype=torch.float64)
    for q, k, v in zip(query, key, value, strict=True):
        weights = _squared_attention(q.unflatten(0, (k.shape[0], -1)), k)
        total += torch.einsum("ht,htc->hc", weights, v.double())
        weight += weights.sum(1, keepdim=True)
    return total / weight


def _squared_attention(query: Tensor, key: Tensor) -> Tensor:
    """The sum of the squared attention weights that each token gets, [KV heads, tokens], float64.

    ``query`` [KV heads, query heads of each, tokens, head size], ``key`` [KV heads, tokens, head size].
    """
    weights = key.new_zeros(key.shape[:2], dtype=torch.float64)
    for start in range(0, key.shape[1], ROWS):
        weights += _attention(query[:, :, start : start + ROWS], key, start).square().sum((1, 2)).double()
    return weights


def _attention(query: Tensor, key: Tensor, start: int) -> Tensor:
    """Causal attention weights of queries that begin at position ``start``."""
    scores = query @ key[:, None].transpose(-1, -2) / key.shape[-1] ** 0.5
    later = key.new_ones(query.shape[2], key.shape[1], dtype=torch.bool).triu(start + 1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)
