"""Scores against plain formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest

from kvtuner_gguf.evaluation import divergence
from kvtuner_gguf.evaluation.divergence import Tally, log_softmax, score

N_TOKENS, N_VOCAB = 37, 1000


@pytest.fixture
def logits() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 4, (N_TOKENS, N_VOCAB)).astype(np.float32)
    return [base, base + rng.normal(0, 0.1, base.shape).astype(np.float32), rng.permuted(base, axis=1)]


@pytest.fixture
def targets() -> np.ndarray:
    return np.random.default_rng(1).integers(0, N_VOCAB, N_TOKENS)


def plain(base: np.ndarray, other: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(1, keepdims=True) for x in (base, other))
    kld = (p * np.log(p / q)).sum(1)
    return {
        "kld_mean": kld.mean(),
        "kld_se": np.std([block.mean() for block in np.array_split(kld, 8)], ddof=1) / 8**0.5,
        "kld_median": np.sort(kld)[N_TOKENS // 2],
        "kld_p999": np.quantile(kld, 0.999),
        "same_top": 100 * np.mean(p.argmax(1) == q.argmax(1)),
        "ppl": np.exp(-np.log(q[np.arange(N_TOKENS), targets]).mean()),
    }


@pytest.mark.parametrize("block_values", [1, 5 * N_VOCAB, 1 << 19])
def test_scores_are_those_of_the_formulas(logits, targets, block_values: int, monkeypatch) -> None:
    monkeypatch.setattr(divergence, "_BLOCK_VALUES", block_values)
    tallies = [Tally() for _ in logits]
    half = N_TOKENS // 2
    for rows in (slice(0, half), slice(half, None)):
        score(logits[0][rows], [other[rows] for other in logits[1:]], targets[rows], tallies)
    for other, tally in zip(logits[1:], tallies[1:], strict=True):
        assert vars(tally.result()) == pytest.approx(plain(logits[0], other, targets), rel=1e-9, abs=1e-12)
    base = tallies[0].result()
    assert (base.kld_mean, base.kld_p999, base.same_top) == (0, 0, 100)
    assert base.ppl == pytest.approx(plain(logits[0], logits[0], targets)["ppl"])


def test_small_divergences_do_not_drown(logits, targets) -> None:
    base = logits[0] + np.float32(100)
    other = base.copy()
    other[:, 0] += np.float32(1e-3)
    tallies = [Tally(), Tally()]
    score(base, [other], targets, tallies)
    expected = plain(base, other, targets)["kld_mean"]
    assert 0 < tallies[1].result().kld_mean == pytest.approx(expected, rel=1e-5)


def test_log_softmax_of_large_logits() -> None:
    out = log_softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32))
    np.testing.assert_allclose(np.exp(out), [[0.5, 0.5, 0.0]])
