"""KL divergence of the whole model under cache types, with forwards that restart at the first changed layer.

With logits that are products of the head's weights W and a vector h, the KLD of q from p is
(sum of p W) (h_p - h_q) + lse_q - lse_p, where lse is the logarithm of the sum of the exponentials of the logits. Of
the exact model three small things are kept for it, and a plan needs its logits for one sum alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtuner_gguf.engine.cachemodel import rotated_sides
from kvtuner_gguf.engine.logits_judge import SKIPPED
from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.plan.pairs import EXACT, UNQUANTIZED, Pair

ROWS = 256
# probabilities below it are left out of means
SMALLEST = 1e-30


@dataclass(frozen=True)
class Exact:
    """Some rows of the exact model: what its head takes, the head's weights as it expects them, and lse."""

    final: Tensor  # [rows, channels]
    expected: Tensor  # [rows, channels]
    lse: Tensor  # [rows], float64

    @classmethod
    @torch.inference_mode()
    def of(cls, reference: Reference, hidden: Tensor) -> Exact:
        final = reference.final(hidden)
        logits = final @ reference.head.T
        return cls(final, probabilities(logits) @ reference.head, _lse(logits))

    @torch.inference_mode()
    def kld(self, reference: Reference, hidden: Tensor) -> Tensor:
        """KLD of rows [rows, channels] of another run, [rows], float64."""
        final = reference.final(hidden)
        moved = ((self.final - final).double() * self.expected.double()).sum(-1)
        return (moved + _lse(final @ reference.head.T) - self.lse).clamp_min(0)


def probabilities(logits: Tensor) -> Tensor:
    """Of logits [rows, vocabulary]; those next to none are zero: products of denormal numbers take 50 times as long."""
    found = logits.softmax(-1)
    return found.masked_fill_(found < SMALLEST, 0.0)


def _lse(logits: Tensor) -> Tensor:
    """In float64 from the largest on: a float32 has 1e-6 at this size, as much as a good cache loses."""
    largest = logits.amax(-1, keepdim=True)
    return largest[:, 0].double() + (logits - largest).exp_().sum(-1).double().log()


def _stored(pairs: Sequence[Pair]) -> list[tuple[tuple[str, bool], ...]]:
    """What decides how each layer stores K and V: the type, and, where that rounds, whether it is rotated."""
    rotated = rotated_sides(pairs)
    return [
        tuple((t.name, is_rotated and t.name != UNQUANTIZED) for t, is_rotated in zip(pair.types, rotated, strict=True))
        for pair in pairs
    ]


class TorchJudge:
    """Scores plans on ``tokens`` [chunks, context] against the exact model."""

    def __init__(self, reference: Reference, tokens: Tensor) -> None:
        self.reference = reference
        self._first = int(tokens.shape[1] * SKIPPED)
        self._inputs: list[Tensor] = []
        output = reference.run(reference.embed(tokens), keep=self._inputs)
        self._exact = [Exact.of(reference, rows) for rows in self._scored(output)]
        self._pairs: tuple[Pair, ...] = (EXACT,) * reference.n_layer
        self._following = tokens[:, self._first + 1 :]

    def _scored(self, hidden: Tensor) -> Sequence[Tensor]:
        return hidden[:, self._first :].flatten(0, 1).split(ROWS)

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Later calls of `kld` restart where they differ from ``pairs``."""
        if tuple(pairs) == self._pairs:
            return
        first = self._first_change(pairs)
        inputs: list[Tensor] = []
        self.reference.run(self._inputs[first], pairs, first, keep=inputs)
        self._inputs[first:] = inputs
        self._pairs = tuple(pairs)

    def kld(self, pairs: Sequence[Pair]) -> Tensor:
        """KLD in nats of every scored token under ``pairs``."""
        first = self._first_change(pairs)
        return self._tokens_kld(self.reference.run(self._inputs[first], pairs, first))

    def nll(self, pairs: Sequence[Pair]) -> Tensor:
        """Negative log-likelihood in nats of every token after a scored one, under ``pairs``."""
        first = self._first_change(pairs)
        output = self.reference.run(self._inputs[first], pairs, first)[:, self._first : -1].flatten(0, 1)
        following = self._following.flatten().to(output.device)
        parts = zip(output.split(ROWS), following.split(ROWS), strict=True)
        return -torch.cat([self.reference.log_probs(rows).gather(-1, next[:, None])[:, 0] for rows, next in parts])

    def _first_change(self, pairs: Sequence[Pair]) -> int:
        both = zip(_stored(self._pairs), _stored(pairs), strict=True)
        changed = (il for il, (a, b) in enumerate(both) if a != b)
        return next(changed, len(self._pairs) - 1)

    def _tokens_kld(self, output: Tensor) -> Tensor:
        parts = zip(self._exact, self._scored(output), strict=True)
        return torch.cat([exact.kld(self.reference, rows) for exact, rows in parts])
