"""Refining on a made-up model whose plans cost more than the sum of their prices."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch")

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.tuning.goal import Goal
from kvtuner_gguf.tuning.prices import Prices
from kvtuner_gguf.tuning.search import Search, front_of, sweep
from kvtuner_gguf.tuning.solver import refine, solve

N_LAYER = 6
SIZES = Sizes(ModelShape("llama", (2,) * N_LAYER, 64, 64))
PAIRS = [Pair(k, v) for k in ("q8_0", "q5_0", "q4_0") for v in ("q8_0", "q5_0", "q4_0")]
CANDIDATES = [PAIRS] * N_LAYER
PRICE = {"q8_0": 0.01, "q5_0": 0.2, "q4_0": 1.0}
PRICES = Prices((PRICE,) * N_LAYER, ({name: 0.9 * price for name, price in PRICE.items()},) * N_LAYER)


class Neighbours:
    """A judge for whom coarse keys in two layers next to each other cost extra."""

    def __init__(self) -> None:
        self.calls = 0

    def cost(self, pairs: tuple[Pair, ...]) -> float:
        coarse = [pair.k == "q4_0" for pair in pairs]
        return PRICES.plan(pairs) + 2.0 * sum(a and b for a, b in pairwise(coarse))

    def kld(self, pairs: tuple[Pair, ...]) -> float:
        self.calls += 1
        return self.cost(tuple(pairs))

    def settle(self, pairs: tuple[Pair, ...]) -> None:
        pass


def run(trials: int) -> tuple[tuple[Pair, ...], float, Neighbours]:
    judge, budget = Neighbours(), SIZES.budget(5.25)
    start = (Pair("q4_0", "q5_0"),) * 3 + (Pair("q5_0", "q5_0"),) * 3
    return *refine(judge, start, PRICES, CANDIDATES, SIZES, budget, trials), judge


def test_trades_lower_the_judged_loss_within_the_budget() -> None:
    pairs, kld, judge = run(trials=60)
    start, start_kld, _ = run(trials=0)
    assert SIZES.plan(pairs) <= SIZES.budget(5.25)
    assert kld == pytest.approx(judge.cost(pairs))
    assert kld < start_kld == judge.cost(start)
    assert judge.calls <= 61
    assert kld == pytest.approx(judge.cost(solve(PRICES, CANDIDATES, SIZES, SIZES.budget(5.25)))), "the optimum here"


def test_refining_again_gives_the_same_plan() -> None:
    assert run(trials=20)[:2] == run(trials=20)[:2]


def searching(trials: int = 30) -> Search:
    return Search(Neighbours(), PRICES, CANDIDATES, SIZES, trials)


def test_a_budget_is_bits_or_mib_for_a_context() -> None:
    assert Goal(bits=5.25).budget(SIZES) == SIZES.budget(5.25)
    in_mib = Goal(mib=3, n_ctx=4096)
    assert in_mib.budget(in_mib.sizes(SIZES.shape)) == 3 * 2**20 // 4096
    assert Goal(max_kld=0.1).budget(SIZES) is None
    endless = {"mib": 3, "n_ctx": 1 << 31}  # a plan that says so would not be read again
    for wrong in ({}, {"bits": 4, "mib": 3}, {"mib": 3}, endless, {"bits": float("nan")}, {"max_kld": -1}):
        with pytest.raises(KvtunerError, match=r"give|add"):
            Goal(**wrong)


@pytest.mark.parametrize("max_kld", [0.2, 1.0, 3.0, 12.0])
def test_the_smallest_plan_below_a_loss_is_small(max_kld: float) -> None:
    point = searching().below(max_kld)
    assert point.loss <= max_kld
    smaller = SIZES.plan(point.pairs) - 2 * SIZES.budget(0.125)
    if smaller >= SIZES.range(CANDIDATES)[0]:
        assert searching(0).judge.kld(solve(PRICES, CANDIDATES, SIZES, smaller)) > 0.8 * max_kld


def test_a_loss_that_no_plan_has_is_an_error() -> None:
    with pytest.raises(KvtunerError, match="raise --max-kld"):
        searching().below(0.01)


def test_the_front_falls_as_it_grows() -> None:
    front = front_of(sweep(Neighbours(), PRICES, CANDIDATES, SIZES), SIZES, {})
    losses = [point.loss for point in front.points]
    assert len(losses) > 4
    assert losses == sorted(losses, reverse=True)
    assert front.bits(front.points[0]) == 4.5
    assert front.best_within(SIZES.budget(6), SIZES).loss == min(p.loss for p in front.points if front.bits(p) <= 6)
    assert front.smallest_below(losses[2]) == front.points[2]
    assert front.best_within(1, SIZES) is None
