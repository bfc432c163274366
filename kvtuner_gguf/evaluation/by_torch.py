"""Judge caches by the torch reference, on the tokens and at the positions by which the built llama.cpp judges them.

What is left between the two evaluators is the runtime's own arithmetic: with quantized weights it also quantizes the
activations of every matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.evaluation.divergence import Tally, score
from kvtuner_gguf.evaluation.rows import BASELINE, N_BATCH, Row, as_plans, make_row
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.progress import Progress

# rows of logits at a time: with a vocabulary of 152k each has 0.6 MB per cache
ROWS = 128


def evaluate(
    model: Path,
    shape: ModelShape,
    caches: Mapping[str, Pair | Plan],
    chunks: Sequence[np.ndarray],
    progress: Progress | None = None,
) -> list[Row]:
    """`judge` with a reference of its own; raises `KvtunerError`, too, where torch cannot load the model."""
    as_plans(caches, shape)  # an error here comes before the long load
    return judge(Reference(model, shape.architecture), shape, caches, chunks, progress)


def judge(
    reference: Reference,
    shape: ModelShape,
    caches: Mapping[str, Pair | Plan],
    chunks: Sequence[np.ndarray],
    progress: Progress | None = None,
) -> list[Row]:
    """A row for the f16 cache and one for each of ``caches`` (by name), on ``chunks`` of int32 tokens.

    Raises `KvtunerError` where a cache does not fit the model.
    """
    plans = as_plans({str(BASELINE): BASELINE, **caches}, shape)
    tallies = [Tally() for _ in plans]
    before = reference.cache
    for done, chunk in enumerate(chunks):
        if progress:
            progress(done, len(chunks))
        _score_chunk(reference, list(plans.values()), chunk, tallies)
    reference.cache = before
    results = [tally.result() for tally in tallies]
    n_ctx = len(chunks[0])
    context = ContextSize(n_ctx, n_ubatch=min(N_BATCH, n_ctx))  # as the built llama.cpp would allocate
    return [
        make_row(name, plan, shape, result, results[0], plan.n_bytes(shape, context) / 2**20)
        for (name, plan), result in zip(plans.items(), results, strict=True)
    ]


def _score_chunk(reference: Reference, plans: Sequence[Plan], chunk: np.ndarray, tallies: Sequence[Tally]) -> None:
    scored = slice(len(chunk) // 2, len(chunk) - 1)
    hidden = [_hidden(reference, plan, chunk)[scored].split(ROWS) for plan in plans]
    targets = np.split(chunk[scored.start + 1 :], range(ROWS, scored.stop - scored.start, ROWS))
    for rows, following in zip(zip(*hidden, strict=True), targets, strict=True):
        logits = [reference.logits(part).cpu().numpy() for part in rows]
        score(logits[0], logits[1:], following, tallies)


def _hidden(reference: Reference, plan: Plan, chunk: np.ndarray) -> Tensor:
    """The output of the last layer, [tokens, channels]."""
    reference.cache = replace(reference.cache, centers=plan.centers)
    tokens = torch.from_numpy(chunk.astype(np.int64))[None]
    return reference.run(reference.embed(tokens), plan.pairs)[0]
