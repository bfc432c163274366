"""KL divergence of the whole model under cache types, with forwards that restart at the first changed layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.tuning.reference import EXACT, Reference

# positions before this share of the chunk have little context and are not scored
SKIPPED = 0.25
ROWS = 256


class Judge:
    """Scores plans on ``tokens`` [chunks, context] against the exact model, whose log-probabilities it keeps."""

    def __init__(self, reference: Reference, tokens: Tensor) -> None:
        self.reference = reference
        self._first = int(tokens.shape[1] * SKIPPED)
        self._inputs: list[Tensor] = []
        output = reference.run(reference.embed(tokens), keep=self._inputs)
        self._exact = [reference.log_probs(rows) for rows in self._scored(output)]
        self._pairs: tuple[Pair, ...] = (EXACT,) * reference.n_layer

    def _scored(self, hidden: Tensor) -> Sequence[Tensor]:
        return hidden[:, self._first :].flatten(0, 1).split(ROWS)

    def settle(self, pairs: Sequence[Pair]) -> float:
        """The mean KLD of ``pairs``; later calls of `kld` restart where they differ from these."""
        first = self._first_change(pairs)
        inputs: list[Tensor] = []
        output = self.reference.run(self._inputs[first], pairs, first, keep=inputs)
        self._inputs[first:] = inputs
        self._pairs = tuple(pairs)
        return self._tokens_kld(output).mean().item()

    def kld(self, pairs: Sequence[Pair]) -> Tensor:
        """KLD in nats of every scored token under ``pairs``."""
        first = self._first_change(pairs)
        return self._tokens_kld(self.reference.run(self._inputs[first], pairs, first))

    def _first_change(self, pairs: Sequence[Pair]) -> int:
        changed = (il for il, (a, b) in enumerate(zip(self._pairs, pairs, strict=True)) if a != b)
        return next(changed, len(self._pairs) - 1)

    def _tokens_kld(self, output: Tensor) -> Tensor:
        parts = zip(self._exact, self._scored(output), strict=True)
        return torch.cat([_kld(exact, self.reference.log_probs(rows)) for exact, rows in parts])


def _kld(exact: Tensor, changed: Tensor) -> Tensor:
    return (exact.exp() * (exact - changed)).sum(-1).clamp_min(0)
