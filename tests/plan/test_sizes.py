"""Bytes and bits of plans with exact ends and turned centers, as a search counts them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import ENDS_CTX, Ends
from kvtuner_gguf.plan.front import Front, Point, pareto
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.tuning.goal import Goal

SHAPE = ModelShape("llama", (2, 2, 1), 64, 64)
WINDOWED = ModelShape("gemma3", (2, 2, 1), 64, 64, window=(1024, 0, 1024))
PARTLY_TURNED = ModelShape("granite_swa", (2, 2, 1), 64, 64, turned=(1, 0, 1))
PLANS = [tuple(map(Pair.parse, names.split())) for names in ("q4_0 q4_0 q4_0", "f16 q3_nl f16", "f16 f16 q8_0/f16")]
ENDS = Ends(4, 128, "q8_0")
SPAN = 256


def spanned(shape: ModelShape, pairs: tuple[Pair, ...], ends: Ends | None) -> Plan:
    """With centers of quantized keys, as a tuning makes them."""
    centers = Centers.from_arrays(list(map(np.ones, shape.sizes_k)), SPAN)
    return Plan(pairs, shape, centers=centers.of_quantized(pairs), ends=ends)


@pytest.mark.parametrize("shape", [SHAPE, WINDOWED], ids=["plain", "windowed"])
@pytest.mark.parametrize("pairs", PLANS, ids=str)
@pytest.mark.parametrize("n_ctx", [None, 1000, 32768])
def test_bits_of_a_goal_are_those_of_the_plan_with_its_ends(
    shape: ModelShape, pairs: tuple[Pair, ...], n_ctx: int | None
) -> None:
    sizes = Goal(bits=4, n_ctx=n_ctx).sizes(shape, ENDS)
    plan = Plan(pairs, shape, ends=ENDS)
    assert sizes.bits(sizes.plan(pairs)) == pytest.approx(plan.bits_with_ends(shape, n_ctx or ENDS_CTX), rel=1e-12)
    assert sizes.budget(sizes.bits(sizes.plan(pairs))) == sizes.plan(pairs)


@pytest.mark.parametrize("shape", [SHAPE, WINDOWED], ids=["plain", "windowed"])
@pytest.mark.parametrize("pairs", PLANS, ids=str)
def test_bytes_of_a_goal_in_mib_are_all_that_is_allocated(shape: ModelShape, pairs: tuple[Pair, ...]) -> None:
    goal = Goal(mib=3, n_ctx=1000)
    sizes = goal.sizes(shape, ENDS)
    assert sizes.plan(pairs) == Plan(pairs, shape, ends=ENDS).n_bytes(shape, ContextSize(1000))
    assert goal.budget(sizes) == 3 * 2**20


@pytest.mark.parametrize("shape", [SHAPE, WINDOWED, PARTLY_TURNED], ids=["plain", "windowed", "partly turned"])
@pytest.mark.parametrize("pairs", PLANS, ids=str)
@pytest.mark.parametrize("ends", [None, ENDS], ids=str)
@pytest.mark.parametrize("n_ctx", [None, 1000, 32768])
def test_bits_of_a_goal_are_those_of_the_plan_with_its_centers(
    shape: ModelShape, pairs: tuple[Pair, ...], ends: Ends | None, n_ctx: int | None
) -> None:
    sizes = Goal(bits=4, n_ctx=n_ctx).sizes(shape, ends, SPAN)
    plan = spanned(shape, pairs, ends)
    assert sizes.n_ctx == (n_ctx or ENDS_CTX)
    assert sizes.unit == 1
    assert sizes.bits(sizes.plan(pairs)) == pytest.approx(plan.bits_with_ends(shape, n_ctx or ENDS_CTX), rel=1e-12)
    assert sizes.budget(sizes.bits(sizes.plan(pairs))) == sizes.plan(pairs)


@pytest.mark.parametrize("shape", [SHAPE, WINDOWED], ids=["plain", "windowed"])
@pytest.mark.parametrize("pairs", PLANS, ids=str)
@pytest.mark.parametrize("ends", [None, ENDS], ids=str)
def test_bytes_of_a_goal_in_mib_have_the_tables(shape: ModelShape, pairs: tuple[Pair, ...], ends: Ends | None) -> None:
    sizes, context = Goal(mib=3, n_ctx=1000).sizes(shape, ends, SPAN), ContextSize(1000)
    plan = spanned(shape, pairs, ends)
    assert sizes.plan(pairs) == plan.n_bytes(shape, context) + plan.centers_bytes(shape, context)


def test_centers_that_do_not_turn_have_no_table() -> None:
    plan = spanned(PARTLY_TURNED, PLANS[0], None)
    tables = [plan.centers_bytes(shape, ContextSize(1000)) for shape in (SHAPE, PARTLY_TURNED)]
    assert tables == [4 * 2 * 64 * (2 + 2 + 1), 4 * 2 * 64 * (2 + 1)]


def test_sizes_say_what_counts_beside_the_types() -> None:
    given = (Sizes(SHAPE), Sizes(SHAPE, ENDS), Sizes(SHAPE, span=SPAN), Sizes(SHAPE, ENDS, span=SPAN))
    both = "ends 4+128:q8_0 and turned centers"
    assert [sizes.beside for sizes in given] == ["", "ends 4+128:q8_0", "turned centers", both]


def test_without_ends_a_goal_counts_as_before() -> None:
    assert Goal(bits=4).sizes(SHAPE) == Sizes(SHAPE)
    assert Goal(bits=4).sizes(WINDOWED).n_ctx == WINDOWED.n_ctx
    assert Sizes(SHAPE).plan(PLANS[0]) == Plan(PLANS[0]).bytes_per_token(SHAPE)


def test_a_front_with_ends_survives_its_file() -> None:
    sizes = Sizes(replace(SHAPE, n_ctx=4096), ENDS)
    points = pareto([Point(pairs, 1 / sizes.plan(pairs)) for pairs in PLANS], sizes)
    front = Front(SHAPE, "kld", points, {}, ENDS, 4096)
    data = json.loads(json.dumps(front.to_json()))
    assert Front.from_json(data) == front
    assert [entry["bits"] for entry in data["points"]] == [front.bits(point) for point in points]
    with_ends = [Plan(point.pairs, ends=ENDS).bits_with_ends(SHAPE, 4096) for point in points]
    assert [entry["bits_with_ends"] for entry in data["points"]] == with_ends
    assert all(front.bits(point) < bits for point, bits in zip(points, with_ends, strict=True))
    for wrong in (None, 0, -1, True, "4096", 1 << 31):
        data["n_ctx"] = wrong
        with pytest.raises(KvtunerError, match=r"the bytes are counted in .* tokens, not in 1 or more"):
            Front.from_json(data)


@pytest.mark.parametrize("ends", [None, ENDS], ids=str)
def test_a_front_with_a_span_survives_its_file(ends: Ends | None) -> None:
    sizes = Sizes(replace(SHAPE, n_ctx=4096), ends, span=SPAN)
    points = pareto([Point(pairs, 1 / sizes.plan(pairs)) for pairs in PLANS], sizes)
    front = Front(SHAPE, "kld", points, {}, ends, 4096, SPAN)
    data = json.loads(json.dumps(front.to_json()))
    assert Front.from_json(data) == front
    assert [entry["bits"] for entry in data["points"]] == [front.bits(point) for point in points]
    bits = [spanned(SHAPE, point.pairs, ends).bits_with_ends(SHAPE, 4096) for point in points]
    assert [entry["bits_with_ends"] for entry in data["points"]] == pytest.approx(bits, rel=1e-12)
    assert all(front.bits(point) < with_tables for point, with_tables in zip(points, bits, strict=True))
    for wrong in (0, -1, True, 100, 8, 131072, "256", 256.0, [256], 1 << 31):
        data["center_span"] = wrong
        with pytest.raises(KvtunerError, match=r"the center span is .*: give a power of two from 16 to 65536"):
            Front.from_json(data)
