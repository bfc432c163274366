"""Fronts in their file, and hostile ones."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.front import Front, Point, index_of, pareto
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.sizes import Sizes

SHAPE = ModelShape("llama", (2, 2), 64, 64)


def point(name: str, loss: float) -> Point:
    return Point((Pair.parse(name),) * 2, loss)


POINTS = (point("q4_0", 0.4), point("q5_0", 0.2), point("q8_0", 0.1))
FRONT = Front(SHAPE, "kld", POINTS, {"seed": 0}, uniform=(point("q4_0", 0.5), point("q5_1", 0.3)))


def test_only_what_nothing_beats_is_on_the_front() -> None:
    beaten = (point("q4_1", 0.5), point("f16", 0.1), point("q5_1", 0.2))
    assert pareto([*beaten, *reversed(POINTS)], Sizes(SHAPE)) == POINTS
    assert index_of(FRONT, POINTS[1].pairs) == 1
    assert index_of(FRONT, beaten[0].pairs) is None


def test_a_front_survives_its_file() -> None:
    data = json.loads(json.dumps(FRONT.to_json()))
    assert Front.from_json(data) == FRONT
    assert [entry["bits"] for entry in data["points"]] == [4.5, 5.5, 8.5]
    assert [entry["payload_bits"] for entry in data["points"]] == [4, 5, 8]
    assert [entry["loss"] for entry in data["uniform"]] == [0.5, 0.3]
    del data["uniform"]  # as earlier versions wrote it
    assert Front.from_json(data) == replace(FRONT, uniform=())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="x"), "schema"),
        (lambda d: d.update(points=3), "'points' must be a list"),
        (lambda d: d["points"].append(3), "point 3 of the front is damaged"),
        (lambda d: d["points"][1].update(loss="low"), "point 1 of the front is damaged"),
        (lambda d: d["points"][1].update(loss=float("nan")), "not a finite number"),
        (lambda d: d["points"][1].update(loss=10**400), "point 1 of the front is damaged"),
        (lambda d: d["points"][1].update(layers=["q4_0"]), "1 layers, the model 2"),
        (lambda d: d["points"].reverse(), "order of their bytes"),
        (lambda d: d.update(provenance=[]), "'provenance' must be an object"),
    ],
)
def test_damage_is_named(change, words: str) -> None:
    data = copy.deepcopy(FRONT.to_json())
    change(data)
    with pytest.raises(KvtunerError, match=words):
        Front.from_json(data)
