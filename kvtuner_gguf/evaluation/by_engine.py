"""Judge caches by an engine, on the tokens and at the positions by which the built llama.cpp judges them.

What is left between the torch reference and the library is the runtime's own arithmetic: with quantized weights it also
quantizes the activations of every matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.evaluation.divergence import Tally, score
from kvtuner_gguf.evaluation.rows import N_BATCH, Row, as_plans, make_row
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress


def evaluate(
    engine: Engine,
    caches: Mapping[str, Pair | Plan],
    chunks: Sequence[np.ndarray],
    progress: Progress | None = None,
    start_pos: int = 0,
) -> list[Row]:
    """A row for the f16 cache and one for each of ``caches`` (by name), on ``chunks`` of int32 tokens.

    The first token of every chunk stands at position ``start_pos``.
    Raises `KvtunerError` where a cache does not fit the model, or that cannot be loaded.
    """
    shape = engine.shape
    plans = as_plans(caches, shape)
    tallies = [Tally() for _ in plans]
    for done, chunk in enumerate(chunks):
        if progress:
            progress(done, len(chunks))
        _score_chunk(engine, list(plans.values()), chunk, start_pos, tallies)
    results = [tally.result(len(chunks)) for tally in tallies]
    n_ctx = len(chunks[0])
    context = ContextSize(n_ctx, n_ubatch=min(N_BATCH, n_ctx))  # as the built llama.cpp would allocate
    return [
        make_row(name, plan, shape, result, results[0], plan.n_bytes(shape, context) / 2**20)
        for (name, plan), result in zip(plans.items(), results, strict=True)
    ]


def _score_chunk(
    engine: Engine, plans: Sequence[Plan], chunk: np.ndarray, start_pos: int, tallies: Sequence[Tally]
) -> None:
    scored = slice(len(chunk) // 2, len(chunk) - 1)
    tokens = torch.from_numpy(chunk.astype(np.int64))
    following = chunk[scored.start + 1 :]
    for blocks in zip(*(engine.logits(plan, tokens, scored, start_pos) for plan in plans), strict=True):
        base, *others = (block.cpu().numpy() for block in blocks)
        score(base, others, following[: len(base)], tallies)
        following = following[len(base) :]
