"""Our attention over caches of any two types against float64, lanes in three orders, and faults planted in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from tests.metal.cached import CACHE_TYPES, fits
from tests.metal.cases import nmse
from tests.metal.device import Fault, Order, Rules
from tests.metal.lint import findings
from tests.metal.plan_attention import FILE, PlanAttention
from tests.metal.plan_cases import PlanCase
from tests.metal.source import barrier_lines

LIMIT = 5e-7  # queries are half in the kernel
ORDERS = [Rules(Order.FORWARD), Rules(Order.REVERSE), Rules(Order.RANDOM, seed=1)]
SIZES = [(64, 64), (80, 80), (96, 96), (112, 112), (128, 128), (192, 128), (256, 256), (512, 512)]
# query heads and KV heads
GROUPS = [(2, 2), (4, 2), (6, 2), (4, 1), (6, 1), (8, 1), (12, 1), (16, 1)]
FEATURES = {
    "no mask": {"mask": False},
    "one token": {"tokens": 1, "mask": False},
    "sinks": {"sinks": True},
    "soft cap": {"soft_cap": 5.0},
    "ALiBi": {"max_bias": 8.0, "heads": 6},
    "19 queries": {"rows": 19, "tokens": 50},
    "streams": {"streams": 3, "rows": 2},
    "exact rows": {"exact": 9, "rows": 2},
    "exact rows of streams": {"exact": 9, "exact_k": "q8_0", "exact_v": "q8_0", "streams": 3, "rows": 2},
    "centers": {"centers": True, "rows": 2},
    "centers and exact rows": {"centers": True, "exact": 7, "streams": 2, "rows": 3},
    "parts": {"parts": 32, "tokens": 300, "sinks": True, "exact": 20, "streams": 2, "simdgroups": 1},
    "rotations": {"q_rotation": 64, "out_rotation": 64, "rows": 2},
    "rotations of parts": {"q_rotation": 16, "out_rotation": 32, "parts": 32, "tokens": 70, "streams": 2},
    "more parts than steps": {"parts": 32, "simdgroups": 4, "tokens": 40},
}
PAIRS = list(product(CACHE_TYPES, CACHE_TYPES))
SOME_PAIRS = [("q8_0", "q3_nl"), ("q2_nl", "q4_0"), ("f16", "iq4_nl")]


def check(case: PlanCase, rules: Rules) -> None:
    attention = PlanAttention(case, rules)
    assert nmse(attention.run(), attention.inputs.expected()) < LIMIT, case


def cases_of(pair: tuple[str, str], sizes: tuple[int, int]) -> Iterator[PlanCase]:
    """All features and groups, of a pair of types and of sizes of heads."""
    plain = PlanCase(*pair, *sizes, tokens=101)
    for heads, kv_heads in GROUPS:
        yield replace(plain, heads=heads, kv_heads=kv_heads, tokens=53, rows=1 + heads % 3)
    for more in FEATURES.values():
        case = replace(plain, **more)
        is_whole = fits(case.exact_k, sizes[0]) and fits(case.exact_v, sizes[1])
        if is_whole and sizes[0] % (case.q_rotation or 1) == sizes[1] % (case.out_rotation or 1) == 0:
            yield case
    if sizes[0] == sizes[1] and sizes[0].bit_count() == 1:
        yield replace(plain, q_rotation=sizes[0], out_rotation=sizes[1])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_pair_of_types(pair: tuple[str, str]) -> None:
    check(PlanCase(*pair, tokens=37, sinks=True), ORDERS[0])


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("name", FEATURES)
def test_what_a_node_can_have(name: str, rules: Rules) -> None:
    for pair, size in zip(SOME_PAIRS, (64, 128, 256), strict=True):
        check(replace(PlanCase(*pair, size, tokens=101), **FEATURES[name]), rules)


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_of_heads(sizes: tuple[int, int]) -> None:
    for rules, heads in zip(ORDERS, (1, 3, 8), strict=True):
        pair = next(pair for pair in SOME_PAIRS[rules.order :] + PAIRS if all(map(fits, pair, sizes)))
        check(PlanCase(*pair, *sizes, heads=heads, kv_heads=1, tokens=41, exact=5), rules)


@pytest.mark.metal_all
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_pair_of_types_and_all_else(pair: tuple[str, str], sizes: tuple[int, int]) -> None:
    if not all(map(fits, pair, sizes)):
        pytest.skip("no whole blocks")
    for i, case in enumerate(cases_of(pair, sizes)):
        check(case, ORDERS[i % 3])


PLANTED = PlanCase("q8_0", "q4_0", size_k=64, rows=3, tokens=90, exact=5, simdgroups=4)


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
def test_a_missing_barrier_is_seen(rules: Rules) -> None:
    lines = barrier_lines(FILE, "threadgroup")
    assert len(lines) == 1
    with pytest.raises(Fault, match=r"race|nobody wrote"):
        PlanAttention(PLANTED, replace(rules, skip_barrier=lines[0])).run()


def test_a_write_past_threadgroup_memory_is_seen() -> None:
    with pytest.raises(Fault, match=r"out of bounds at kvtuner-metal-merge\.h:"):
        PlanAttention(PLANTED, less_memory=16).run()


def test_barriers_alone_order_its_memory() -> None:
    check(PLANTED, Rules(strict=True))


def test_apples_compiler_has_nothing_against_it() -> None:
    parts = [FILE.parent / f"kvtuner-metal-{part}.h" for part in ("quads", "lanes", "scores", "columns", "merge")]
    files = [*FILE.parent.glob("*.metal"), *parts]
    assert {path.name: found for path in files if (found := findings(path.read_text()))} == {}
