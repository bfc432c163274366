"""Stage 0, the centers: what keys (after RoPE) and values have in common over the calibration text.

Keys of some models carry a large constant in the channels that RoPE hardly turns (the key bias of Qwen2): it takes the
levels that a quantized cache has for the differences between keys, which are all that attention sees.

The mean is weighted by what an error of that key or value does to the attention output o. A value's error enters it
with its attention weight a, a key's, through its logit, with a |v - o| |q|. Rounding errors of tokens are independent
and grow with the distance from the center, so the squares add up, and the mean weighted by the squares makes their sum
least. The first token, which attention returns to all the time, counts for what it does, not for one token in many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kvtuner_gguf.centers import Centers
from kvtuner_gguf.keyspread import KeySpread
from kvtuner_gguf.plan import Plan
from kvtuner_gguf.tuning.calibration import calibrate
from kvtuner_gguf.tuning.reference import Reference

# query rows at a time, so that long chunks need no square of their length
ROWS = 512


def measure_centers(
    reference: Reference, tokens: Tensor, progress: Callable[[int, int], None] | None = None
) -> tuple[Centers, KeySpread]:
    """The weighted mean key and value of every layer, KV head and channel over ``tokens`` [chunks, context].

    Sums run in float64. Later queries weigh what they attend like earlier ones, so long chunks speak for long contexts.
    """
    found: list[tuple[Tensor, Tensor]] = []
    spread: list[tuple[float, ...]] = []

    def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        order = reference.cache.runtime_order
        found.append(weighted_means(order(query), order(key), value))
        spread.append(_spread(order(key), found[-1][0]))
        if progress:
            progress(il + 1, reference.n_layer)

    reference.run(reference.embed(tokens), capture=measure)
    centers = Centers.from_arrays((k.numpy() for k, _ in found), (v.numpy() for _, v in found))
    return centers, KeySpread(*zip(*spread, strict=True))


def center_plan(
    model: Path,
    plan: Plan,
    text: Path,
    n_tokens: int,
    n_ctx: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Plan, KeySpread]:
    """``plan``, whose model shape is known, with the centers of ``model`` on ``text``.

    Raises `KvtunerError` where torch cannot load the model or the text is too short.
    """
    reference = Reference(model, plan.model.architecture)
    texts = calibrate(text, reference.tokenize, n_tokens, n_ctx, seed)
    centers, spread = measure_centers(reference, texts.tuning, progress)
    facts = {"text": texts.name, "text_sha256": texts.sha256, "text_tokens": texts.n_tokens, "n_ctx": n_ctx}
    provenance = {**plan.provenance, **facts, "seed": seed, "keys": spread.to_json()}
    return replace(plan, centers=centers, provenance=provenance), spread


def _spread(key: Tensor, center: Tensor) -> tuple[float, ...]:
    """The fields of `KeySpread` for one layer."""
    centered = key - center[:, None].to(key)
    sizes = [(x.abs().max().item(), x.double().square().mean().sqrt().item()) for x in (key, centered)]
    return tuple(value for pair in zip(*sizes, strict=True) for value in pair)


def weighted_means(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Centers [KV heads, head size] of keys and of values, from one layer's [batch, heads, tokens, head size]."""
    sums_k, sums_v = (_Mean(key.shape[1], x.shape[3]) for x in (key, value))
    for q, k, v in zip(query, key, value, strict=True):
        weights_k, weights_v = _weights(q.unflatten(0, (k.shape[0], -1)), k, v)
        sums_k.add(weights_k, k)
        sums_v.add(weights_v, v)
    return sums_k.result(), sums_v.result()


class _Mean:
    """A running weighted mean of rows, one per KV head, in float64."""

    def __init__(self, n_heads: int, n_channels: int) -> None:
        self._sum = torch.zeros(n_heads, n_channels, dtype=torch.float64)
        self._weight = torch.zeros(n_heads, 1, dtype=torch.float64)

    def add(self, weights: Tensor, x: Tensor) -> None:
        """``weights`` [KV heads, tokens] and ``x`` [KV heads, tokens, channels]."""
        self._sum += torch.einsum("ht,htc->hc", weights, x.double())
        self._weight += weights.sum(1, keepdim=True)

    def result(self) -> Tensor:
        return self._sum / self._weight.clamp_min(torch.finfo(torch.float64).tiny)


def _weights(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of each token's key and value, [KV heads, tokens], float64.

    ``query`` [KV heads, query heads of each, tokens, head size], ``key`` and ``value`` [KV heads, tokens, head size].
    """
    n_tokens = key.shape[1]
    weights_k, weights_v = torch.zeros(2, key.shape[0], n_tokens, dtype=torch.float64)
    squares = value.square().sum(-1)[:, None, None]
    for start in range(0, n_tokens, ROWS):
        q = query[:, :, start : start + ROWS]
        a = _attention(q, key, start)
        o = a @ value[:, None]
        distance = squares - 2 * o @ value[:, None].transpose(-1, -2) + o.square().sum(-1, keepdim=True)
        a = a.square()
        weights_v += a.sum((1, 2)).double()
        weights_k += (a * distance.clamp_min(0) * q.square().sum(-1, keepdim=True)).sum((1, 2)).double()
    return weights_k, weights_v


def _attention(query: Tensor, key: Tensor, start: int) -> Tensor:
    """Causal attention weights of queries that begin at position ``start``."""
    scores = query @ key[:, None].transpose(-1, -2) / key.shape[-1] ** 0.5
    later = torch.ones(query.shape[2], key.shape[1], dtype=torch.bool).triu(start + 1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)
