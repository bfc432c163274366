"""Stage 4, the search: the best plan for a budget on the priced model, then refined by the KLD of whole plans.

The priced model adds up what each layer costs alone; what layers do to each other shows in the KLD of a whole plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.front import Front, Point, pareto
from kvtuner_gguf.plan.sizes import LayerPairs, Sizes
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.judges import Judge, Noise, no_noise
from kvtuner_gguf.tuning.prices import Prices
from kvtuner_gguf.tuning.solver import refine, solve

# budgets that are tried for a loss, in bits per value
FINE_STEP = 0.125


@dataclass(frozen=True)
class Search:
    """Everything that a plan is searched with.

    ``trials`` are the trades that a refinement may judge; those that win less than the ``noise`` are not made.
    """

    judge: Judge
    prices: Prices
    candidates: LayerPairs
    sizes: Sizes
    trials: int
    noise: Noise = no_noise

    def within(self, budget: int, progress: Progress | None = None) -> Point:
        """The plan of least KLD in ``budget`` bytes: solved on the prices, refined as a whole.

        Raises `KvtunerError` where no plan fits.
        """
        start = solve(self.prices, self.candidates, self.sizes, budget)
        given = (self.prices, self.candidates, self.sizes, budget, self.trials, progress, self.noise)
        pairs, kld = refine(self.judge, start, *given)
        return Point(pairs, kld, self.prices.plan(pairs))

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


def sweep(
    judge: Judge,
    prices: Prices,
    candidates: LayerPairs,
    sizes: Sizes,
    n_points: int = 10,
    progress: Progress | None = None,
) -> list[Point]:
    """The best priced plan of each of ``n_points`` sizes, smallest to largest in even ratios, judged whole."""
    smallest, largest = sizes.range(candidates)
    budgets = sorted({round(size) for size in np.geomspace(smallest, largest, n_points)})
    points = {}
    for done, budget in enumerate(budgets):
        pairs = solve(prices, candidates, sizes, budget)
        points[pairs] = Point(pairs, judge.kld(pairs), prices.plan(pairs))
        if progress:
            progress(done + 1, len(budgets))
    return list(points.values())


def front_of(points: Sequence[Point], sizes: Sizes, provenance: Mapping[str, object], measure: str = "kld") -> Front:
    """The front of ``points``, whose loss is the ``measure``; of ends the first and last positions count."""
    best = pareto(points, Sizes(sizes.shape, sizes.ends, span=sizes.span))
    return Front(sizes.shape, measure, best, provenance, sizes.ends, sizes.n_ctx, sizes.span)
