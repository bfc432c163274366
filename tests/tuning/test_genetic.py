"""The genetic search, on made-up losses whose optima are known."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES
from kvtuner_gguf.plan.front import Point, pareto
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.tuning.cluster import Group, Groups
from kvtuner_gguf.tuning.genetic import GeneticSettings, ladder, search

SHAPE = ModelShape("llama", (2, 2, 2, 2, 2), 64, 64)
KV8, K8V4, KV4 = (Pair.parse(text) for text in ("q8_0", "q8_0/q4_0", "q4_0"))
LADDER = (KV4, K8V4, KV8)
GROUPS = Groups(SHAPE, (Group((0, 4), LADDER), Group((1,), LADDER), Group((2,), LADDER), Group((3,), LADDER)))
WEIGHTS = (5.0, 1.0, 0.5, 2.0, 5.0)
PRICES = {KV8: 0.01, K8V4: 0.1, KV4: 1.0}
SETTINGS = GeneticSettings(trials=300, population=20, seed=3)


def loss(pairs: Sequence[Pair]) -> float:
    return sum(weight * PRICES[pair] for weight, pair in zip(WEIGHTS, pairs, strict=True))


def all_plans() -> list[tuple[Pair, ...]]:
    return [GROUPS.expand(choice) for choice in itertools.product(LADDER, repeat=4)]


def true_front(within: Callable[[tuple[Pair, ...]], bool] = lambda _: True) -> tuple[Point, ...]:
    return pareto([Point(pairs, loss(pairs)) for pairs in all_plans() if within(pairs)], Sizes(SHAPE))


def bits(pairs: Sequence[Pair]) -> float:
    return Plan(tuple(pairs)).bits_per_value(SHAPE)


def test_payload_bits_are_the_papers() -> None:
    assert {name: kind.payload_bits for name, kind in CACHE_TYPES.items()} == {
        "f32": 32,
        "f16": 16,
        "bf16": 16,
        "q8_0": 8,
        "q5_1": 5,
        "q5_0": 5,
        "q4_1": 4,
        "q4_0": 4,
        "iq4_nl": 4,
        "q3_nl": 3,
        "q2_nl": 2,
    }
    assert all(kind.payload_bits <= kind.bits_per_value for kind in CACHE_TYPES.values())
    assert (KV8.payload_bits, K8V4.payload_bits, Pair("q3_nl", "q2_nl").payload_bits) == (8, 6, 2.5)


def test_the_front_is_found() -> None:
    assert search(GROUPS, loss, SETTINGS) == true_front()


def test_each_plan_is_measured_once() -> None:
    seen: list[tuple[Pair, ...]] = []
    search(GROUPS, lambda pairs: seen.append(tuple(pairs)) or loss(pairs), SETTINGS)
    assert len(seen) == len(set(seen)) <= len(all_plans()) < SETTINGS.trials


def trials_of(settings: GeneticSettings, storage: Path | None = None) -> tuple[list[tuple[Pair, ...]], Any]:
    seen: list[tuple[Pair, ...]] = []
    points = search(GROUPS, lambda pairs: seen.append(tuple(pairs)) or loss(pairs), settings, storage)
    return seen, points


def test_the_same_seed_gives_the_same_trials(tmp_path: Path) -> None:
    settings = GeneticSettings(trials=60, population=10, seed=1, max_bits=6.5)
    first = trials_of(settings)
    assert first == trials_of(settings) == trials_of(settings, tmp_path / "optuna.log")
    assert first != trials_of(GeneticSettings(trials=60, population=10, seed=2, max_bits=6.5))


def test_a_killed_search_begins_again_and_ends_the_same(tmp_path: Path) -> None:
    settings = GeneticSettings(trials=60, population=10, max_loss=8.0)
    known: dict[tuple[Pair, ...], float] = {}
    measured = 0

    def remembered(pairs: Sequence[Pair]) -> float:
        nonlocal measured
        if tuple(pairs) not in known:
            if measured == 25:
                raise InterruptedError
            measured += 1
            known[tuple(pairs)] = loss(pairs)
        return known[tuple(pairs)]

    storage = tmp_path / "optuna.log"
    with pytest.raises(InterruptedError):
        search(GROUPS, remembered, settings, storage)
    (tmp_path / "optuna.log.lock").touch()
    measured = 0
    assert repr(search(GROUPS, remembered, settings, storage)) == repr(search(GROUPS, loss, settings))
    assert 0 < measured < 25
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.log"]


def test_bounds_on_bits_and_loss_are_kept() -> None:
    settings = GeneticSettings(trials=300, population=20, max_bits=6.5, max_loss=4.0)
    points = search(GROUPS, loss, settings)
    assert points == true_front(lambda pairs: bits(pairs) <= 6.5 and loss(pairs) <= 4.0)
    assert points != true_front()


def test_a_plan_on_the_bound_is_within() -> None:
    points = search(GROUPS, loss, GeneticSettings(trials=300, population=20, max_bits=bits([KV8] + [KV4] * 3 + [KV8])))
    assert bits(points[-1].pairs) == pytest.approx(6.1)


def test_where_no_plan_is_within_all_are_shown() -> None:
    seen, points = trials_of(GeneticSettings(trials=60, population=20, max_bits=6.0, max_loss=0.1))
    assert points == pareto([Point(pairs, loss(pairs)) for pairs in seen], Sizes(SHAPE))
    assert points


def test_seeds_are_tried_first() -> None:
    best = (KV8, KV4, KV4, K8V4, KV8)
    seen: list[tuple[Pair, ...]] = []

    def needle(pairs: Sequence[Pair]) -> float:
        seen.append(tuple(pairs))
        return 0.0 if tuple(pairs) == best else 1.0 + loss(pairs)

    points = search(GROUPS, needle, GeneticSettings(trials=3), seeds=[best, (KV4,) * 5, best])
    assert seen[:2] == [best, (KV4,) * 5]
    assert Point(best, 0.0) in points


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        ((KV8, KV4, KV4, KV4, KV4), "layer 4 of a seed has q4_0/q4_0, layer 0 of the same group 0 q8_0/q8_0"),
        ((KV4, KV4, Pair.parse("f16"), KV4, KV4), "layer 2 of a seed has f16/f16, its group 2 has q4_0/q4_0"),
        ((KV4,) * 4, "has 4 layers, the model 5"),
    ],
)
def test_a_seed_that_the_groups_cannot_express_is_refused(tmp_path: Path, seed: tuple[Pair, ...], words: str) -> None:
    storage = tmp_path / "optuna.log"
    storage.write_text("kept")
    with pytest.raises(KvtunerError, match=words):
        search(GROUPS, loss, SETTINGS, storage, seeds=[seed])
    assert storage.read_text() == "kept"


def test_more_seeds_than_trials_are_refused() -> None:
    with pytest.raises(KvtunerError, match="2 seeds do not fit into 1 trials"):
        search(GROUPS, loss, GeneticSettings(trials=1), seeds=[(KV4,) * 5, (KV8,) * 5])


def test_a_seed_may_have_any_pair_where_there_is_no_cache() -> None:
    shape = ModelShape("llama", (0, 2), 64, 64)
    groups = Groups(shape, (Group((0,), (KV4,)), Group((1,), LADDER)))
    points = search(groups, lambda pairs: PRICES[pairs[1]], GeneticSettings(trials=1), seeds=[(KV8, KV8)])
    assert [point.pairs for point in points] == [(KV4, KV8)]


def test_groups_without_a_choice_have_one_plan() -> None:
    groups = Groups(SHAPE, (Group((0, 1, 2, 3, 4), (KV4,)),))
    points = search(groups, loss, GeneticSettings(trials=30, population=5))
    assert points == (Point((KV4,) * 5, loss((KV4,) * 5)),)


def test_progress_counts_the_trials() -> None:
    steps: list[tuple[int, int]] = []
    search(GROUPS, loss, GeneticSettings(trials=5), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 5) for done in range(1, 6)]


def test_nothing_is_said_aloud(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    search(GROUPS, loss, GeneticSettings(trials=5))
    with pytest.raises(KvtunerError):
        search(GROUPS, lambda _: float("nan"), GeneticSettings(trials=5))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert optuna.logging.get_verbosity() == before


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(KvtunerError, match="not a finite number"):
        search(GROUPS, lambda _: float("inf"), SETTINGS)


def test_a_ladder_goes_from_the_smallest_plan_to_the_largest() -> None:
    assert ladder(GROUPS, 9) == [GROUPS.expand([pair] * 4) for pair in LADDER]
    assert ladder(GROUPS, 1) == [GROUPS.expand([KV4] * 4)]
    few = Groups(SHAPE, (Group((0, 1, 2), (K8V4, KV8)), Group((3, 4), LADDER)))
    assert ladder(few, 9)[0] == (K8V4,) * 3 + (KV4,) * 2


def test_with_a_ladder_a_budget_far_below_the_mean_is_met() -> None:
    shape = ModelShape("llama", (2,) * 24, 64, 64)
    groups = Groups(shape, tuple(Group((il,), LADDER) for il in range(24)))
    settings = GeneticSettings(trials=100, seed=1, max_bits=5.0)
    found = search(groups, lambda pairs: sum(PRICES[pair] for pair in pairs), settings, seeds=ladder(groups, 10))
    assert all(Plan(point.pairs).bits_per_value(shape) <= 5.0 for point in found)


def test_an_impossible_pair_is_refused_before_it_is_measured() -> None:
    shape = ModelShape("llama", (2,), 32, 32)
    groups = Groups(shape, (Group((0,), (Pair.parse("q2_nl"),)),))
    with pytest.raises(KvtunerError, match="layer 0: K type q2_nl"):
        search(groups, lambda _: pytest.fail("measured"), SETTINGS)


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "optuna.log"):
        with pytest.raises(KvtunerError, match=f"cannot write {path}"):
            search(GROUPS, loss, SETTINGS, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"trials": 1.5}, "trials is 1.5"),
        ({"population": 1}, "population is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 32}, "seed is"),
        ({"seed": True}, "seed is True"),
        ({"max_bits": float("nan")}, "max_bits is nan"),
        ({"max_bits": -1}, "max_bits is -1"),
        ({"max_loss": "4"}, "max_loss is '4'"),
    ],
)
def test_bad_settings_say_what_to_change(change: dict[str, Any], words: str) -> None:
    with pytest.raises(KvtunerError, match=words):
        GeneticSettings(**change)
