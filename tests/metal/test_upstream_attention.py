"""Upstream's attention kernels against float64, lanes in three orders, and faults planted in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metal.attention import KERNELS, Attention
from tests.metal.cases import Case, nmse
from tests.metal.device import Fault, Order, Rules
from tests.metal.source import barrier_lines

LIMIT = 1e-6  # queries and weights are half in these kernels
ORDERS = [Rules(Order.FORWARD), Rules(Order.REVERSE), Rules(Order.RANDOM, seed=1)]
VECTOR = {
    "one row": {},
    "odd length, sinks": {"tokens": 101, "sinks": True},
    "short, no mask": {"tokens": 37, "mask": False},
    "soft cap": {"tokens": 100, "soft_cap": 5.0},
    "a head for each": {"heads": 2, "tokens": 33},
    "groups of 8": {"heads": 8, "kv_heads": 1, "tokens": 70},
    "many threadgroups": {"threadgroups": 32, "tokens": 300, "heads": 2, "kv_heads": 1, "sinks": True},
}
MATRIX = {
    "one block": {"rows": 8, "tokens": 64},
    "odd length, sinks": {"rows": 9, "tokens": 101, "sinks": True},
    "no mask": {"rows": 8, "tokens": 100, "mask": False},
    "soft cap": {"rows": 11, "tokens": 70, "soft_cap": 5.0},
    "groups of 8": {"rows": 20, "heads": 8, "kv_heads": 1, "tokens": 70},
}
# what a threadgroup and a lane of the vector kernel take at once
SPLITS = [(64, 4, 2), (128, 1, 2), (128, 1, 4)]


def check(libraries: dict[str, Path], case: Case, kind: str, rules: Rules) -> None:
    attention = Attention(libraries, case, kind, rules)
    assert nmse(attention.run(), attention.inputs.expected()) < LIMIT


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", VECTOR)
def test_vector_kernel(libraries: dict[str, Path], cache_type: str, head_size: int, name: str, rules: Rules) -> None:
    check(libraries, Case(cache_type=cache_type, head_size=head_size, **VECTOR[name]), "vec", rules)


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tokens", [32, 101])
def test_splits_of_the_vector_kernel(
    libraries: dict[str, Path], cache_type: str, split: tuple[int, int, int], tokens: int, rules: Rules
) -> None:
    head_size, queries, elements = split
    sizes = {"head_size": head_size, "queries": queries, "elements": elements, "rows": queries + 1}
    check(libraries, Case(cache_type=cache_type, tokens=tokens, **sizes), "vec", rules)


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", MATRIX)
def test_matrix_kernel(libraries: dict[str, Path], cache_type: str, head_size: int, name: str, rules: Rules) -> None:
    check(libraries, Case(cache_type=cache_type, head_size=head_size, **MATRIX[name]), "matrix", rules)


PLANTED = {
    "vec": Case(cache_type="q8_0", head_size=128, rows=3, tokens=300, queries=2, elements=2),
    "matrix": Case(cache_type="q8_0", head_size=128, rows=9, tokens=150, heads=1, kv_heads=1),
}
FILES = {"vec": KERNELS / "fa_vec_common.metal", "matrix": KERNELS / "fa_common.metal"}


def planted_lines(kind: str, barrier: str) -> list[int]:
    return barrier_lines(FILES[kind], barrier) if FILES[kind].exists() else []


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("kind", ["vec", "matrix"])
def test_each_missing_threadgroup_barrier_is_seen(libraries: dict[str, Path], kind: str, rules: Rules) -> None:
    lines = planted_lines(kind, "threadgroup")
    assert len(lines) >= 3
    for line in lines:
        without = Rules(rules.order, rules.seed, skip_barrier=line)
        with pytest.raises(Fault, match=r"race|nobody wrote"):
            Attention(libraries, PLANTED[kind], kind, without).run()


@pytest.mark.parametrize("kind", ["vec", "matrix"])
def test_a_write_past_threadgroup_memory_is_seen(libraries: dict[str, Path], kind: str) -> None:
    with pytest.raises(Fault, match=r"out of bounds at fa_(vec_)?common\.metal:"):
        Attention(libraries, PLANTED[kind], kind, Rules(), less_memory=16).run()


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("what", ["the P matrix", "S0 and M0"])
def test_barriers_that_a_patch_adds_are_needed(libraries: dict[str, Path], what: str, rules: Rules) -> None:
    lines = FILES["vec"].read_text().split("\n")
    barrier = next(number for number, line in enumerate(lines, 2) if f"// other lanes may still read {what}" in line)
    case = Case(cache_type="q8_0", head_size=128, tokens=300)
    assert barrier in planted_lines("vec", "simdgroup")
    with pytest.raises(Fault, match="race"):
        Attention(libraries, case, "vec", Rules(rules.order, rules.seed, skip_barrier=barrier)).run()
