"""Judge caches by the built llama.cpp: the f16 context and the others side by side over the same tokens.

The f16 cache runs as without a plan, uniform pairs run as plans: with the attention that plans have.

Chunks, BOS and scored tokens (`kvtuner_gguf.evaluation.chunks`) are those of ``llama-perplexity --kl-divergence``
(upstream ``tools/perplexity/perplexity.cpp``): every chunk starts with an empty cache and, if the model wants one, with
BOS in place of its first token; the tokens after the middle of the chunk are scored. That tool stores the
log-probabilities of the base in 16 bits and cuts them 16 nats below the largest, this one keeps them whole, so KLDs and
the perplexity of the base agree to about 0.3 %, the other numbers to all digits shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvtuner_gguf.engine.llama.native import Context, open_model
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.chunks import Chunks, Sample
from kvtuner_gguf.evaluation.divergence import Divergence, Tally, score
from kvtuner_gguf.evaluation.rows import BASELINE, N_BATCH, Row, as_plans, make_row
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.progress import Progress


class Span(NamedTuple):
    """A batch: the tokens of a chunk from ``start`` to before ``stop``, and whether what they predict is scored."""

    start: int
    stop: int
    scored: bool


def evaluate(
    model_path: Path,
    shape: ModelShape,
    caches: Mapping[str, Pair | Plan],
    sample: Sample | Chunks,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """A row for the f16 cache and one for each of ``caches`` (by name), in this order.

    Raises `KvtunerError` where the model cannot be loaded, a cache does not fit it, or the text is too short.
    """
    plans = as_plans(caches, shape)
    with ExitStack() as stack:
        model = stack.enter_context(open_model(model_path, n_threads))
        chunks = sample.chunks(model)
        n_batch = min(N_BATCH, sample.n_ctx)
        used = (BASELINE, *list(plans.values())[1:])
        contexts = stack.enter_context(model.contexts(used, sample.n_ctx, n_batch))
        for plan, context in zip(plans.values(), contexts, strict=True):
            _check_allocated(plan, context)
        results = _run(contexts, chunks, progress)
        mib = [context.cache_bytes / 2**20 for context in contexts]
    return [
        make_row(name, plan, shape, result, results[0], size)
        for (name, plan), result, size in zip(plans.items(), results, mib, strict=True)
    ]


def sample_chunks(model_path: Path, sample: Sample) -> list[np.ndarray]:
    """The tokens of `evaluate`, for another evaluator."""
    with open_model(model_path, vocab_only=True) as model:
        return sample.chunks(model)


def _run(contexts: Sequence[Context], chunks: Sequence[np.ndarray], progress: Progress | None) -> list[Divergence]:
    tallies = [Tally() for _ in contexts]
    steps = list(product(chunks, _spans(len(chunks[0]), contexts[0].n_batch)))
    for done, (chunk, span) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps))
        _run_span(contexts, chunk, span, tallies)
    return [tally.result(len(chunks)) for tally in tallies]


def _run_span(contexts: Sequence[Context], chunk: np.ndarray, span: Span, tallies: Sequence[Tally]) -> None:
    if span.start == 0:
        for context in contexts:
            context.clear()
    tokens = chunk[span.start : span.stop]
    logits = [context.decode(tokens, span.start, want_logits=span.scored) for context in contexts]
    if span.scored:
        score(logits[0], logits[1:], chunk[span.start + 1 : span.stop + 1], tallies)


def _spans(n_ctx: int, n_batch: int) -> Iterator[Span]:
    """The batches of a chunk. Its last token is left out: nothing is known of what follows it."""
    middle = n_ctx // 2
    for first, last, scored in ((0, middle, False), (middle, n_ctx - 1, True)):
        for start in range(first, last, n_batch):
            yield Span(start, min(start + n_batch, last), scored)


def _check_allocated(plan: Plan, context: Context) -> None:
    for il, (asked, got) in enumerate(zip(plan.pairs, context.cache_types, strict=True)):
        if got is not None and got != asked:
            raise KvtunerError(
                f"layer {il}: the cache has {got}, not {asked}: install the patched build of this version"
            )
