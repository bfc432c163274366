"""Stage 0, the scales: how much keys of a layer are stretched in each pair of channels that RoPE turns.

The levels of a quantized cache are shared by the channels that are rotated together, so that errors of all have the
same size; but an error counts as much as queries make of its channel. Keys are multiplied by the fourth root of the
energy of queries over that of centered keys and queries are divided by it, which makes the expected error of their
products least. Both energies are those of each query and each key that it reads from the quantized cache, weighted by
what an error of their product does to the output of attention: ``configs/centering.md`` has other choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention, Rope
from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.engine.ends import is_exact
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.metadata import scaling_obstacle
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends, can_have_ends
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.progress import Progress

POWER = 0.25
# a factor is at most this, and at least 1 over it: real ones are 0.3 to 5
LARGEST = 64.0
# queries at a time: some arrays have that many rows of all tokens for each head
ROWS = 64


def measure_scales(
    engine: Engine,
    tokens: Tensor,
    centers: Centers | None = None,
    ends: Ends | None = None,
    progress: Progress | None = None,
) -> Scales | None:
    """The scales of every layer and KV head over ``tokens`` [chunks, context], of keys less of ``centers``.

    None where keys cannot be scaled, or the engine does not tell its RoPE. What a layer reads from ``ends`` does not
    count: those with a window read nothing there. Sums over blocks of queries run in float64.
    """
    if scaling_obstacle(engine.shape) is not None:
        return None
    layers = engine.shape.layers
    scales: list[np.ndarray | None] = [None] * len(layers)

    def measure(il: int, used: Attention) -> None:
        scales[il] = _scale(used, il, centers, ends if can_have_ends(layers[il]) else None)
        if progress:
            progress(il + 1, engine.shape.n_layer)

    engine.capture(tokens, measure)
    return Scales.from_arrays(scales) if any(scale is not None for scale in scales) else None


def _scale(used: Attention, il: int, centers: Centers | None, ends: Ends | None) -> np.ndarray | None:
    if used.rope is None:
        return None
    queries, keys = energies_by_attention(_centered(used, il, centers), used, ends)
    return pair_scale(queries, keys, POWER, used.rope).cpu().numpy() if keys.any() else None


def _centered(used: Attention, il: int, centers: Centers | None) -> Attention:
    values = None if centers is None else centers.array_k(il)
    if centers is None or values is None:
        return used
    center = torch.from_numpy(values).to(used.key).double().reshape(used.key.shape[1], -1)
    return replace(used, key=used.key - used.lost_by_keys(center, centers.span).to(used.key))


def pair_scale(queries: Tensor, keys: Tensor, power: float, rope: Rope) -> Tensor:
    """[KV heads, head size] from energies [KV heads, pairs], with a geometric mean of 1, up to `LARGEST`.

    A pair without energy counts as one whose energies are alike.
    """
    logs = (queries / keys).log().nan_to_num(0.0, 0.0, 0.0) * power
    factors = (logs - logs.mean(-1, keepdim=True)).exp().clamp(1 / LARGEST, LARGEST)
    return rope.channels(torch.complex(factors, factors))


def energies(used: Attention) -> tuple[Tensor, Tensor]:
    """Of queries [chunks, KV heads, query heads of each, tokens, pairs] and keys [chunks, KV heads, tokens, pairs].

    Raises `KvtunerError` where the engine does not tell its RoPE, and so not what the pairs are.
    """
    if used.rope is None:
        raise KvtunerError("this engine does not tell its RoPE, whose pairs of channels have scales: tune without")
    queries, keys = (used.rope.pairs(x).abs().square() for x in (used.query, used.key))
    return queries.unflatten(1, (keys.shape[1], -1)), keys


def energies_by_attention(centered: Attention, used: Attention, ends: Ends | None) -> tuple[Tensor, Tensor]:
    """Of queries and of the keys of ``centered``, [KV heads, pairs], by the `error_weights` of ``used``."""
    queries, keys = energies(centered)
    sums = torch.zeros_like(queries[0, :, 0, 0]), torch.zeros_like(keys[0, :, 0])
    for chunk in range(len(keys)):
        for rows, weights in error_weights(used, chunk, ends):
            by_query, by_key = weights.sum(-1).double(), weights.sum((1, 2)).double()
            sums[0].add_((by_query[..., None] * queries[chunk][:, :, rows]).sum((1, 2)))
            sums[1].add_((by_key[:, None] @ keys[chunk, :, : rows.stop])[:, 0])
    return sums


def error_weights(used: Attention, chunk: int, ends: Ends | None) -> Iterator[tuple[slice, Tensor]]:
    """By how much the squared error of a product of a query and a key enters that of the output, relative to its size.

    For some queries at a time [KV heads, query heads of each, queries, tokens up to the last of them].
    """
    key, value = used.key[chunk][:, None], used.value[chunk][:, None]
    query = used.query[chunk].unflatten(0, (len(key), -1))
    for start in range(0, query.shape[2], ROWS):
        rows = slice(start, min(start + ROWS, query.shape[2]))
        positions = torch.arange(rows.start, rows.stop, device=query.device)
        seen = value[:, :, : rows.stop]
        weights = used.weights(query[:, :, rows] @ key[:, :, : rows.stop].transpose(-1, -2), positions, chunk)
        output = weights @ seen
        apart = torch.cdist(output, seen.expand(-1, output.shape[1], -1, -1))
        found = weights.mul_(apart).div_(output.norm(dim=-1, keepdim=True)).square_()
        found.nan_to_num_(0.0, 0.0, 0.0)  # of an output of 0 nothing is relative
        yield rows, found if ends is None else found.masked_fill_(is_exact(ends, positions, rows.stop), 0)
