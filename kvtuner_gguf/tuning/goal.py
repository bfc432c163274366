"""What a plan is searched for: the least loss in a budget, or the fewest bytes under a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.front import Point
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.judges import Judge
from kvtuner_gguf.tuning.pricing import Prices
from kvtuner_gguf.tuning.search import Candidates, Sizes, refine, solve

DEFAULT_BITS = 6.5
# budgets that are tried for a loss, in bits per value
FINE_STEP = 0.125


@dataclass(frozen=True)
class Goal:
    """``bits`` true bits per value; or ``mib`` MiB for ``n_ctx`` tokens; or at most ``max_kld`` nats per token."""

    bits: float | None = None
    mib: float | None = None
    n_ctx: int | None = None
    max_kld: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("bits", "mib", "max_kld") if getattr(self, name) is not None]
        if len(given) != 1:
            raise KvtunerError(
                f"one goal is needed, not {' and '.join(given) or 'none'}: give --bits, --mib or --max-kld"
            )
        (name,) = given
        value = getattr(self, name)
        if not math.isfinite(value) or value <= 0:
            raise KvtunerError(f"--{name.replace('_', '-')} is {value!r}: give a positive number")
        if self.mib is not None and (self.n_ctx is None or self.n_ctx < 1):
            raise KvtunerError("--mib is for a number of tokens: add --for-ctx, for example --for-ctx 32768")

    def budget(self, sizes: Sizes) -> int | None:
        """Bytes per token; None where the loss is what is given."""
        if self.mib is not None:
            return math.floor(self.mib * 2**20 / self.n_ctx)
        return None if self.bits is None else sizes.budget(self.bits)

    def __str__(self) -> str:
        if self.mib is not None:
            return f"{self.mib:g} MiB for {self.n_ctx} tokens"
        return f"{self.bits:g} bits per value" if self.bits is not None else f"a mean KLD of {self.max_kld:g}"


@dataclass(frozen=True)
class Search:
    """Everything that a plan is searched with; ``trials`` are the trades that a refinement may judge."""

    judge: Judge
    prices: Prices
    candidates: Candidates
    sizes: Sizes
    trials: int

    def within(self, budget: int, progress: Progress | None = None) -> Point:
        """The plan of least KLD in ``budget`` bytes per token: solved on the prices, refined as a whole.

        Raises `KvtunerError` where no plan fits.
        """
        start = solve(self.prices, self.candidates, self.sizes, budget)
        found = refine(self.judge, start, self.prices, self.candidates, self.sizes, budget, self.trials, progress)
        return Point(*found, self.prices.plan(found[0]))

    def below(self, max_kld: float, progress: Progress | None = None) -> Point:
        """The smallest plan found whose KLD is at most ``max_kld``.

        Bisection finds the budget at which a solved plan will do; below it refined plans are tried, step by step.
        Raises `KvtunerError` where no plan will do.
        """
        budget = self._solved_below(max_kld)
        best = self.within(budget, progress)
        while (budget := self._step_below(best)) is not None:
            point = self.within(budget, progress)
            if point.loss > max_kld:
                break
            best = point
        return best

    def _solved_below(self, max_kld: float) -> int:
        smallest, largest = self.sizes.range(self.candidates)
        step = max(1, self.sizes.budget(FINE_STEP))
        low, high = 0, -(-(largest - smallest) // step)
        if self._solved_kld(smallest + high * step) > max_kld:
            raise KvtunerError(
                f"no plan of these candidates has a KLD of {max_kld:g}: raise --max-kld or add larger types"
            )
        while low < high:
            middle = (low + high) // 2
            if self._solved_kld(smallest + middle * step) <= max_kld:
                high = middle
            else:
                low = middle + 1
        return smallest + low * step

    def _solved_kld(self, budget: int) -> float:
        return self.judge.kld(solve(self.prices, self.candidates, self.sizes, budget))

    def _step_below(self, point: Point) -> int | None:
        budget = self.sizes.plan(point.pairs) - max(1, self.sizes.budget(FINE_STEP))
        return budget if budget >= self.sizes.range(self.candidates)[0] else None
