"""Stage 0, the centers: what keys have in common over the calibration text.

Keys of some models carry a large constant (the key bias of Qwen2): it takes the levels that a quantized cache has for
the differences between keys, which are all that attention sees. RoPE turns it from position to position. So the center
is that of a span of positions, and turns with the blocks of so many: the mean of keys before RoPE times the mean of
what RoPE does at the first positions. An engine that does not tell its RoPE gives the mean of keys as they are.

Values have no such constant: they are not centered; ``configs/centering.md`` has the numbers.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.plan.centers import DEFAULT_SPAN, Centers
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.calibration import calibrate
from kvtuner_gguf.tuning.scale import measure_scales


def measure_centers(
    engine: Engine, tokens: Tensor, span: int | None = DEFAULT_SPAN, progress: Progress | None = None
) -> tuple[Centers, KeySpread]:
    """The center of the keys of every layer, KV head and channel over ``tokens`` [chunks, context].

    It is that of ``span`` positions; without a span, where the engine does not tell its RoPE, or where no center would
    turn, it is the mean of the keys as they are and has none. Every position of a chunk counts the same. Sums run in
    float64.
    """
    n_layer = engine.shape.n_layer
    span = span if engine.shape.has_turned else None
    keys: list[np.ndarray | None] = [None] * n_layer
    spread = [(0.0,) * len(fields(KeySpread))] * n_layer
    spans: list[int | None] = []

    def measure(il: int, used: Attention) -> None:
        spans.append(None if used.rope is None else span)
        center = center_of(used, spans[-1])
        keys[il] = center.cpu().numpy()
        spread[il] = _spread(used.key, used.lost_by_keys(center, spans[-1]))
        if progress:
            progress(il + 1, n_layer)

    engine.capture(tokens, measure)
    return Centers.from_arrays(keys, spans[-1]), KeySpread(*zip(*spread, strict=True))


def center_plan(
    engine: Engine,
    plan: Plan,
    text: Path,
    n_tokens: int,
    n_ctx: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Plan, KeySpread]:
    """``plan``, whose model ``engine`` runs, with the centers and scales of that on ``text`` where it quantizes.

    Raises `KvtunerError` where the model cannot be loaded or the text is too short.
    """
    texts = calibrate(text, engine.tokenize, n_tokens, n_ctx, seed)
    centers, spread = measure_centers(engine, texts.tuning, progress=_half(progress, 0))
    scales = measure_scales(engine, texts.tuning, centers, plan.ends, _half(progress, 1))
    facts = {"text": texts.name, "text_sha256": texts.sha256, "text_tokens": texts.n_tokens, "n_ctx": n_ctx}
    provenance = {**plan.provenance, **facts, "seed": seed, "keys": spread.to_json()}
    scales = scales and scales.of_quantized(plan.pairs)
    return replace(plan, centers=centers.of_quantized(plan.pairs), scales=scales, provenance=provenance), spread


def _half(progress: Progress | None, i: int) -> Progress | None:
    """``progress`` of the first or the second of two steps that take as long."""
    return None if progress is None else lambda done, total: progress(done + i * total, 2 * total)


def center_of(used: Attention, span: int | None) -> Tensor:
    """[KV heads, head size], float64; ``span`` as of `measure_centers`."""
    if span is None or used.rope is None:
        return used.key.double().mean((0, 2))
    positions = torch.arange(max(span, used.key.shape[2]), device=used.key.device)
    unturned = used.rope.turned(used.key, -positions[: used.key.shape[2]]).mean((0, 2))
    return used.rope.turned(unturned[:, None], positions[:span]).mean(1)


def _spread(key: Tensor, center: Tensor) -> tuple[float, ...]:
    """The fields of `KeySpread` for one layer; ``center`` as of `Attention.lost_by_keys`."""
    centered = key - center.to(key)
    sizes = [(x.abs().max().item(), x.double().square().mean().sqrt().item()) for x in (key, centered)]
    return tuple(value for pair in zip(*sizes, strict=True) for value in pair)
