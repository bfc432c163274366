"""Refining on a made-up model whose plans cost more than the sum of their prices."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.cachetypes import Pair  # noqa: E402
from kvtuner_gguf.plan import ModelShape  # noqa: E402
from kvtuner_gguf.tuning.pricing import Prices  # noqa: E402
from kvtuner_gguf.tuning.search import Sizes, refine, solve  # noqa: E402

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

    def kld(self, pairs: tuple[Pair, ...]) -> torch.Tensor:
        self.calls += 1
        return torch.full((4,), self.cost(pairs), dtype=torch.float64)

    def settle(self, pairs: tuple[Pair, ...]) -> float:
        return self.cost(tuple(pairs))


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
    assert judge.calls <= 60
    assert kld == pytest.approx(judge.cost(solve(PRICES, CANDIDATES, SIZES, SIZES.budget(5.25)))), "the optimum here"


def test_refining_again_gives_the_same_plan() -> None:
    assert run(trials=20)[:2] == run(trials=20)[:2]
