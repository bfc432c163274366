"""KL divergence of the whole model under cache types, with forwards that restart at the first changed layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.tuning.journal import Journal
from kvtuner_gguf.tuning.reference import EXACT, Reference

# positions before this share of the chunk have little context and are not scored
SKIPPED = 0.25
ROWS = 256
KEPT_BYTES = 2 << 30


class Judge:
    """Scores plans on ``tokens`` [chunks, context] against the exact model.

    Its log-probabilities are kept, or found again each time where they would take too much memory.
    """

    def __init__(self, reference: Reference, tokens: Tensor) -> None:
        self.reference = reference
        self._first = int(tokens.shape[1] * SKIPPED)
        self._inputs: list[Tensor] = []
        output = reference.run(reference.embed(tokens), keep=self._inputs)
        self._output = self._scored(output)
        n_bytes = sum(len(rows) for rows in self._output) * reference.n_vocab * output.element_size()
        self._exact = [reference.log_probs(rows) for rows in self._output] if n_bytes <= KEPT_BYTES else None
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
        changed = (il for il, (a, b) in enumerate(zip(self._pairs, pairs, strict=True)) if a != b)
        return next(changed, len(self._pairs) - 1)

    def _tokens_kld(self, output: Tensor) -> Tensor:
        exact = self._exact or (self.reference.log_probs(rows) for rows in self._output)
        parts = zip(exact, self._scored(output), strict=True)
        return torch.cat([_kld(before, self.reference.log_probs(rows)) for before, rows in parts])


class Ledger:
    """What plans lose on average: those in the journal from there, others measured, and written there.

    The judge is made when the first plan has to be measured. ``name`` parts the plans of one judge from another's.
    """

    def __init__(self, make: Callable[[], Judge], journal: Journal, name: str = "tuning") -> None:
        self._make, self._journal, self._name = make, journal, name
        self._judge: Judge | None = None
        self._base: tuple[Pair, ...] | None = None

    def kld(self, pairs: Sequence[Pair]) -> float:
        """The mean KLD of ``pairs`` in nats per token."""
        key = " ".join([self._name, *map(str, pairs)])
        return self._journal.remember(key, lambda: self._ready().kld(pairs).mean().item())

    def perplexity(self, pairs: Sequence[Pair]) -> float:
        """The perplexity of the text under ``pairs``."""
        key = " ".join([self._name, "perplexity", *map(str, pairs)])
        return self._journal.remember(key, lambda: self._ready().nll(pairs).mean().exp().item())

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Say that later plans differ little from ``pairs``: their forwards restart there."""
        self._base = tuple(pairs)

    def _ready(self) -> Judge:
        if self._judge is None:
            self._judge = self._make()
        if self._base is not None:
            self._judge.settle(self._base)
        return self._judge


def _kld(exact: Tensor, changed: Tensor) -> Tensor:
    return (exact.exp() * (exact - changed)).sum(-1).clamp_min(0)
