"""What plans are measured by: their divergence on the tuning text, or the tasks that they fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.tuning.journal import Journal

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import TokenJudge


class Judge(Protocol):
    """What prices and plans are measured by."""

    def kld(self, pairs: Sequence[Pair]) -> float: ...

    def settle(self, pairs: Sequence[Pair]) -> None: ...


class TaskJudge(Protocol):
    """Judges plans by tasks; ``name`` stands for which these are."""

    name: str

    def failed_share(self, plan: Plan) -> float:
        """The share of the tasks, 0 to 1, that the model fails with the caches of ``plan``."""


class Ledger:
    """What plans lose on average: those in the journal from there, others measured, and written there.

    The judge is made when the first plan has to be measured. ``name`` parts the plans of one judge from another's.
    """

    def __init__(self, make: Callable[[], TokenJudge], journal: Journal, name: str = "tuning") -> None:
        self._make, self._journal, self._name = make, journal, name
        self._judge: TokenJudge | None = None
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

    def has(self, pairs: Sequence[Pair]) -> bool:
        """Whether the mean KLD of ``pairs`` is in the journal."""
        return " ".join([self._name, *map(str, pairs)]) in self._journal

    def _ready(self) -> TokenJudge:
        if self._judge is None:
            self._judge = self._make()
        if self._base is not None:
            self._judge.settle(self._base)
        return self._judge
