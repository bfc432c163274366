"""How far the next-token distributions of some caches are from those of the f16 cache.

The sums run in float64: the KLD of an 8-bit cache is near 1e-4, close to what float32 loses in a log-softmax.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kvtuner_gguf.evaluation.blocks import block_means, standard_error

Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What `Tally.add` takes."""

# Values in one float64 block: a few such blocks fit a CPU cache.
_BLOCK_VALUES = 1 << 19


@dataclass(frozen=True)
class Divergence:
    """Means over all scored tokens; the KLDs are in nats, `same_top` is in percent.

    ``kld_se``: the standard error of ``kld_mean``, None for a single token.
    """

    kld_mean: float
    kld_se: float | None
    kld_median: float
    kld_p999: float
    same_top: float
    ppl: float


class Tally:
    """The scores of one cache, token by token."""

    def __init__(self) -> None:
        self._kld: list[np.ndarray] = []
        self._same_top: list[np.ndarray] = []
        self._nll: list[np.ndarray] = []

    def add(self, kld: np.ndarray, same_top: np.ndarray, nll: np.ndarray) -> None:
        """Add tokens: KLD in nats, whether the top token is that of the base, negative log-likelihood."""
        self._kld.append(kld)
        self._same_top.append(same_top)
        self._nll.append(nll)

    def result(self, n_chunks: int = 1) -> Divergence:
        """Of all tokens, which are of ``n_chunks`` equally long chunks."""
        kld = np.concatenate(self._kld)
        blocks = block_means(kld, n_chunks)
        return Divergence(
            kld_mean=float(kld.mean()),
            kld_se=standard_error(blocks) if len(blocks) > 1 else None,
            kld_median=float(np.median(kld)),
            kld_p999=float(np.quantile(kld, 0.999)),
            same_top=100.0 * float(np.concatenate(self._same_top).mean()),
            ppl=float(np.exp(np.concatenate(self._nll).mean())),
        )


def score(base: np.ndarray, others: Sequence[np.ndarray], targets: np.ndarray, tallies: Sequence[Tally]) -> None:
    """Add the tokens of one batch to ``tallies``, the first of which is that of ``base``.

    ``base`` and each of ``others`` are float32 logits of the shape (tokens, vocabulary), ``targets`` the tokens that
    really came next.
    """
    n_rows = max(1, _BLOCK_VALUES // base.shape[1])
    blocks = [slice(start, start + n_rows) for start in range(0, len(targets), n_rows)]

    def score_block(rows: slice) -> list[Scores]:
        return _score_block(base[rows], [other[rows] for other in others], targets[rows])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets other threads run
        for scores in pool.map(score_block, blocks):
            for tally, of_cache in zip(tallies, scores, strict=True):
                tally.add(*of_cache)


def _score_block(base: np.ndarray, others: Sequence[np.ndarray], targets: np.ndarray) -> list[Scores]:
    tokens = np.arange(len(targets))
    base_log = log_softmax(base)
    base_prob = np.exp(base_log)
    base_top = base.argmax(axis=1)
    scores: list[Scores] = [(np.zeros(len(targets)), np.ones(len(targets), bool), -base_log[tokens, targets])]
    for other in others:
        other_log = log_softmax(other)
        nll = -other_log[tokens, targets]
        np.subtract(base_log, other_log, out=other_log)
        scores.append((np.einsum("ij,ij->i", base_prob, other_log), other.argmax(axis=1) == base_top, nll))
    return scores


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row by row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
