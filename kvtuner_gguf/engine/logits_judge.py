"""What plans lose, by the logits of an engine alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import EXACT, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import Engine

# positions before this share of the chunk have little context and are not scored
SKIPPED = 0.25
# positions: few, since some models cut all positions into parts
MOVED = 100
# float32 has room for the exponentials of no more
MAX_EXPONENT = 80


def kld_when_moved(engine: Engine, tokens: Tensor) -> float:
    """The mean KLD of ``tokens`` [chunks, context] at later positions from those at the first, with an exact cache."""
    starts = (0, MOVED if engine.can_move else 0)
    rows, plan = slice(_first_scored(tokens), tokens.shape[1]), Plan.uniform(EXACT, engine.shape.n_layer)
    klds = [
        _kld(first, later)
        for chunk in tokens
        for first, later in zip(*(engine.logits(plan, chunk, rows, start) for start in starts), strict=True)
    ]
    return torch.cat(klds).mean().item()


class LogitsJudge:
    """Scores plans on ``tokens`` [chunks, context] against the exact model, whose logits are kept."""

    def __init__(
        self,
        engine: Engine,
        tokens: Tensor,
        centers: Centers | None = None,
        ends: Ends | None = None,
        scales: Scales | None = None,
    ) -> None:
        self._engine, self._tokens = engine, tokens
        self._centers, self._ends, self._scales = centers, ends, scales
        self._first = _first_scored(tokens)
        self._exact = list(self._logits((EXACT,) * engine.shape.n_layer))

    def kld(self, pairs: Sequence[Pair]) -> Tensor:
        """KLD in nats of every scored token under ``pairs``, float64."""
        blocks = zip(self._exact, self._logits(pairs), strict=True)
        return torch.cat([_kld(exact, other) for exact, other in blocks])

    def nll(self, pairs: Sequence[Pair]) -> Tensor:
        """Negative log-likelihood in nats of every token after a scored one, under ``pairs``, float64."""
        log_probs = torch.cat([_log_probs(block) for block in self._logits(pairs)])
        log_probs = log_probs.unflatten(0, (len(self._tokens), -1))[:, :-1]
        following = self._tokens[:, self._first + 1 :, None].to(log_probs.device)
        return -log_probs.gather(-1, following).flatten()

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Nothing is kept of a run but its logits."""

    def _logits(self, pairs: Sequence[Pair]) -> Iterator[Tensor]:
        """Blocks of the scored rows of all chunks."""
        plan = Plan(tuple(pairs), self._engine.shape, centers=self._centers, ends=self._ends, scales=self._scales)
        for chunk in self._tokens:
            yield from self._engine.logits(plan, chunk, slice(self._first, len(chunk)))


def _first_scored(tokens: Tensor) -> int:
    return int(tokens.shape[1] * SKIPPED)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _kld(exact: Tensor, other: Tensor) -> Tensor:
    """Of the logits ``exact`` to the ``other`` ones; also right where it is tiny.

    With d the difference of the logits less its mean under the exact model it is the logarithm of the mean of exp(d).
    """
    p = exact.softmax(-1)
    moved = other - exact
    moved -= (p * moved).sum(-1, keepdim=True)
    if moved.max() > MAX_EXPONENT:
        moved = moved.double()
    curved = torch.expm1(moved).sub_(moved).mul_(p).sum(-1)
    return curved.double().clamp_min(0).log1p()
