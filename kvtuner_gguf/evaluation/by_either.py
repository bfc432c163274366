"""Caches judged by the evaluator that is named: the built llama.cpp or the torch reference, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.engine.opening import check_engine, open_engine
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation import by_llama
from kvtuner_gguf.evaluation.chunks import Sample
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.progress import Progress

EVALUATORS = ("native", "torch")


def check_evaluator(evaluator: str, start_pos: int = 0) -> None:
    """Raise `KvtunerError` where there is no such evaluator, or it does not begin at ``start_pos``."""
    if evaluator not in EVALUATORS:
        raise KvtunerError(f"unknown evaluator {evaluator!r}: use one of {', '.join(EVALUATORS)}")
    if evaluator == "native" and start_pos:
        raise KvtunerError(f"llama.cpp judges from position 0, not --start-pos {start_pos}: add --evaluator torch")


def check_there(evaluator: str, model: Path, headers: Sequence[GgufHeader]) -> None:
    """Raise `KvtunerError` where the evaluator cannot run ``model`` or is not installed.

    As far as that is known without loading anything but the built llama.cpp.
    """
    if evaluator == "torch":
        check_engine(model, headers, "torch")
    patched_llama_cpp()  # which cuts the text into tokens in any case


def evaluate(
    evaluator: str,
    model: Path,
    shape: ModelShape,
    caches: Mapping[str, Pair | Plan],
    sample: Sample,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """A row for the f16 cache and one for each of ``caches`` (by name), by one of `EVALUATORS`.

    Raises `KvtunerError` where there is no such evaluator, it cannot load the model, or a cache does not fit it.
    """
    check_evaluator(evaluator, sample.start_pos)
    if evaluator == "native":
        return by_llama.evaluate(model, shape, caches, sample, n_threads, progress)
    engine = open_engine(model, shape, threads=n_threads, engine="torch")
    from kvtuner_gguf.evaluation import by_engine

    return by_engine.evaluate(engine, caches, by_llama.sample_chunks(model, sample), progress, sample.start_pos)
