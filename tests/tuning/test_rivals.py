"""The uniform pairs that a plan is compared with."""

from __future__ import annotations

import pytest

from kvtuner_gguf.plan.backends import BACKENDS
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.plan import Plan, of_caches
from kvtuner_gguf.plan.shape import ModelShape

pytest.importorskip("torch")

from kvtuner_gguf.tuning.prices import Prices
from kvtuner_gguf.tuning.rivals import rivals

SHAPE = ModelShape("llama", (2, 2, 2), 64, 64)
TYPES = BACKENDS["cpu"]


def plan_of(*pairs: str) -> Plan:
    return Plan(tuple(map(Pair.parse, pairs)), SHAPE)


def names(plan: Plan, prices: Prices | None = None, shape: ModelShape = SHAPE) -> list[str]:
    backend = TYPES.fitting(shape)
    return list(rivals(plan, shape, 8192, backend.pairs(), lambda p: Plan(of_caches(p, shape), shape), prices))


def test_without_prices_the_nearest_sizes_count() -> None:
    """9.5 / 3 bits: the next pairs have 2.75 (q3_nl with 3.25, q2_nl 2.25) and 3.25."""
    found = names(plan_of("q4_0/q4_0", "q2_nl/q2_nl", "q3_nl/q2_nl"))
    assert found == ["uniform q3_nl/q2_nl", "uniform q3_nl/q3_nl", "stock q4_0/q4_0"]


def test_prices_tell_the_best_that_is_no_larger() -> None:
    prices = dict.fromkeys(TYPES.names, 1.0) | {"f16": 0.0}
    cheap_values = Prices((prices,) * 3, ({**prices, "q3_nl": 0.1},) * 3)
    found = names(plan_of("q4_0/q4_0", "q2_nl/q2_nl", "q3_nl/q2_nl"), cheap_values)
    assert found[0] == "uniform q2_nl/q3_nl"


def test_the_plan_itself_is_no_rival() -> None:
    found = names(plan_of(*["q4_0/q4_0"] * 3))
    assert "uniform q4_0/q4_0" not in found
    assert "stock q4_0/q4_0" not in found
    assert "stock iq4_nl/iq4_nl" not in found, "only the nearest one, and that is the plan"


def test_the_smallest_and_the_largest_plan_have_rivals_on_one_side() -> None:
    assert names(plan_of(*["q2_nl/q2_nl"] * 3))[0] == "uniform q3_nl/q2_nl"
    assert names(plan_of(*["f16/f16"] * 3)) == ["uniform f16/q8_0", "stock q8_0/q8_0"]


def test_layers_without_a_cache_are_left_alone() -> None:
    shape = ModelShape("llama", (2, 0, 2), 64, 64)
    plan = Plan((Pair.parse("q4_0"), F16, Pair.parse("q2_nl")), shape)
    found = rivals(plan, shape, 8192, TYPES.pairs(), lambda p: Plan(of_caches(p, shape), shape))
    assert [made.pairs[1] for made in found.values()] == [F16] * 3


def test_heads_that_no_block_divides_have_none() -> None:
    shape = ModelShape("llama", (2, 2), 40, 40)
    assert names(Plan((F16, F16), shape), shape=shape) == []
