"""What plans are measured by: their divergence on the tuning text, or the tasks that they fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kvtuner_gguf.evaluation.blocks import block_means, standard_error
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.tuning.journal import Journal

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import TokenJudge


class Judge(Protocol):
    """What prices and plans are measured by."""

    def kld(self, pairs: Sequence[Pair]) -> float: ...

    def settle(self, pairs: Sequence[Pair]) -> None: ...


class ErrorJudge(Judge, Protocol):
    """One that also knows how far chance may move its means."""

    def standard_error(self, pairs: Sequence[Pair]) -> float: ...


Noise = Callable[[Sequence[Pair], Sequence[Pair]], float]
"""How much the KLDs of two plans may differ by chance."""


def no_noise(one: Sequence[Pair], other: Sequence[Pair]) -> float:
    """Every difference counts."""
    return 0.0


class TaskJudge(Protocol):
    """Judges plans by tasks; ``name`` stands for which these are."""

    name: str

    def failed_share(self, plan: Plan) -> float:
        """The share of the tasks, 0 to 1, that the model fails with the caches of ``plan``."""


class Ledger:
    """What plans lose on average: those in the journal from there, others measured, and written there.

    The judge is made when the first plan has to be measured. ``name`` parts the plans of one judge from another's.
    Its text has ``n_chunks``. Beside each mean are those of `block_means`, which tell standard errors.
    """

    def __init__(
        self, make: Callable[[], TokenJudge], journal: Journal, name: str = "tuning", n_chunks: int = 1
    ) -> None:
        self._make, self._journal, self._name, self._n_chunks = make, journal, name, n_chunks
        self._judge: TokenJudge | None = None
        self._base: tuple[Pair, ...] | None = None

    def kld(self, pairs: Sequence[Pair]) -> float:
        """The mean KLD of ``pairs`` in nats per token."""
        return self.measured(pairs)["kld"]

    def standard_error(self, pairs: Sequence[Pair]) -> float:
        """That of the mean KLD of ``pairs``."""
        return standard_error(self._blocks(pairs))

    def paired_error(self, one: Sequence[Pair], other: Sequence[Pair]) -> float:
        """The standard error of the difference of two mean KLDs, token by token.

        What makes a token hard for both plans does not count in it.
        """
        return standard_error(self._blocks(one) - self._blocks(other))

    def perplexity(self, pairs: Sequence[Pair]) -> float:
        """The perplexity of the text under ``pairs``."""
        key = " ".join([self._name, "perplexity", *map(str, pairs)])
        return self._journal.remember(key, lambda: self._ready().nll(pairs).mean().exp().item())

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Say that later plans differ little from ``pairs``: their forwards restart there."""
        self._base = tuple(pairs)

    def has(self, pairs: Sequence[Pair]) -> bool:
        """Whether what is `measured` of ``pairs`` is in the journal."""
        return self._journal.has(self._key(pairs), _has_blocks)

    def measured(self, pairs: Sequence[Pair]) -> Mapping[str, Any]:
        """``kld``, the mean, and ``blocks``; an entry of an earlier version, which has no blocks, is measured again."""

        def measure() -> Mapping[str, Any]:
            klds = self._ready().kld(pairs)
            blocks = block_means(klds.detach().cpu().numpy(), self._n_chunks)
            return {"kld": klds.mean().item(), "blocks": blocks.tolist()}

        return self._journal.remember(self._key(pairs), measure, _has_blocks)

    def keep(self, pairs: Sequence[Pair], measured: Mapping[str, Any]) -> None:
        """Write down what another ledger has `measured` of ``pairs``."""
        self._journal.remember(self._key(pairs), lambda: measured, _has_blocks)

    def _blocks(self, pairs: Sequence[Pair]) -> np.ndarray:
        return np.array(self.measured(pairs)["blocks"])

    def _key(self, pairs: Sequence[Pair]) -> str:
        return " ".join([self._name, *map(str, pairs)])

    def _ready(self) -> TokenJudge:
        if self._judge is None:
            self._judge = self._make()
        if self._base is not None:
            self._judge.settle(self._base)
        return self._judge


def _has_blocks(entry: object) -> bool:
    return isinstance(entry, Mapping) and "blocks" in entry
