"""Stage 0, the centers: what keys (after RoPE) have in common over the calibration text, at all depths of a context.

Keys of some models carry a large constant in the channels that RoPE hardly turns (the key bias of Qwen2): it takes the
levels that a quantized cache has for the differences between keys, which are all that attention sees. Their center is
the mean over all positions of the text, or, for contexts of another depth, the mean of keys before RoPE times the mean
of what RoPE does at all positions of that depth: pairs of channels that turn often within it have next to none then.

Values have no such constant: they are not centered; ``configs/centering.md`` has the numbers.
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


def measure_centers(
    engine: Engine, tokens: Tensor, depth: int | None = None, progress: Progress | None = None
) -> tuple[Centers, KeySpread]:
    """The center of the keys of every layer, KV head and channel over ``tokens`` [chunks, context].

    It is that of contexts of ``depth`` positions, without one (or where the engine does not tell its RoPE) the mean of
    the keys as they are: every position of a chunk counts the same. Sums run in float64.
    """
    keys: list[np.ndarray] = []
    spread: list[tuple[float, ...]] = []

    def measure(il: int, used: Attention) -> None:
        center = center_of(used, depth)
        keys.append(center.cpu().numpy())
        spread.append(_spread(used.key, center))
        if progress:
            progress(il + 1, engine.shape.n_layer)

    engine.capture(tokens, measure)
    return Centers.from_arrays(keys), KeySpread(*zip(*spread, strict=True))


def center_plan(
    engine: Engine,
    plan: Plan,
    text: Path,
    n_tokens: int,
    n_ctx: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Plan, KeySpread]:
    """``plan``, whose model ``engine`` runs, with the centers of that on ``text`` where it quantizes.

    Raises `KvtunerError` where the model cannot be loaded or the text is too short.
    """
    texts = calibrate(text, engine.tokenize, n_tokens, n_ctx, seed)
    centers, spread = measure_centers(engine, texts.tuning, progress=progress)
    facts = {"text": texts.name, "text_sha256": texts.sha256, "text_tokens": texts.n_tokens, "n_ctx": n_ctx}
    provenance = {**plan.provenance, **facts, "seed": seed, "keys": spread.to_json()}
    return replace(plan, centers=centers.of_quantized(plan.pairs), provenance=provenance), spread


def center_of(used: Attention, depth: int | None) -> Tensor:
    """[KV heads, head size], float64; ``depth`` as of `measure_centers`."""
    if depth is None or used.rope is None:
        return used.key.double().mean((0, 2))
    n_tokens = used.key.shape[2]
    turns = used.rope.turns(torch.arange(max(depth, n_tokens), device=used.key.device))
    unturned = used.rope.pairs(used.key) * turns[:n_tokens].conj()
    return used.rope.channels(unturned.mean((0, 2)) * turns[:depth].mean(0))


def _spread(key: Tensor, center: Tensor) -> tuple[float, ...]:
    """The fields of `KeySpread` for one layer."""
    centered = key - center[:, None].to(key)
    sizes = [(x.abs().max().item(), x.double().square().mean().sqrt().item()) for x in (key, centered)]
    return tuple(value for pair in zip(*sizes, strict=True) for value in pair)
