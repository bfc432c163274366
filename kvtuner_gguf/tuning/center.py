"""Stage 0, the centers: what keys (after RoPE) have in common over the calibration text.

Keys of some models carry a large constant in the channels that RoPE hardly turns (the key bias of Qwen2): it takes the
levels that a quantized cache has for the differences between keys, which are all that attention sees. Their center is
the mean over all positions.

Values have no such constant: they are not centered; ``configs/centering.md`` has the numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.calibration import calibrate


def measure_centers(engine: Engine, tokens: Tensor, progress: Progress | None = None) -> tuple[Centers, KeySpread]:
    """The center of the keys of every layer, KV head and channel over ``tokens`` [chunks, context].

    Sums run in float64. Every position of a chunk counts the same, so long chunks speak for long contexts.
    """
    keys: list[np.ndarray] = []
    spread: list[tuple[float, ...]] = []

    def measure(il: int, used: Attention) -> None:
        center = used.key.double().mean((0, 2))
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
    centers, spread = measure_centers(engine, texts.tuning, progress)
    facts = {"text": texts.name, "text_sha256": texts.sha256, "text_tokens": texts.n_tokens, "n_ctx": n_ctx}
    provenance = {**plan.provenance, **facts, "seed": seed, "keys": spread.to_json()}
    return replace(plan, centers=centers.of_quantized(plan.pairs), provenance=provenance), spread


def _spread(key: Tensor, center: Tensor) -> tuple[float, ...]:
    """The fields of `KeySpread` for one layer."""
    centered = key - center[:, None].to(key)
    sizes = [(x.abs().max().item(), x.double().square().mean().sqrt().item()) for x in (key, centered)]
    return tuple(value for pair in zip(*sizes, strict=True) for value in pair)
