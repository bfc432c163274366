"""Prices from a few measured types, on made-up numbers."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.prices import Prices, interpolate, rungs
from kvtuner_gguf.tuning.reasons import reasons

NAMES = ("f16", "q8_0", "q5_0", "q4_0", "q3_nl", "q2_nl")
ERRORS = {"f16": 1e-8, "q8_0": 1e-5, "q5_0": 1e-3, "q4_0": 4e-3, "q3_nl": 2e-2, "q2_nl": 1e-1}


def test_measured_types_are_the_middles_of_even_parts() -> None:
    assert rungs(NAMES, 1) == ("q4_0",)
    assert rungs(NAMES, 2) == ("q2_nl", "q5_0")
    assert rungs(NAMES, 5) == ("q2_nl", "q3_nl", "q4_0", "q5_0", "q8_0")
    assert rungs(NAMES, 50) == rungs(NAMES, 5)
    assert rungs(("f16",), 2) == ()


def test_a_power_law_is_found_between_and_continued_outside() -> None:
    measured = {name: 3 * ERRORS[name] ** 1.5 for name in ("q2_nl", "q4_0")}
    found = interpolate(ERRORS, measured)
    assert found["q3_nl"] == pytest.approx(3 * ERRORS["q3_nl"] ** 1.5)
    assert found["q4_0"] == measured["q4_0"]
    assert found["q8_0"] == pytest.approx(measured["q4_0"] * ERRORS["q8_0"] / ERRORS["q4_0"]), "slope 1 outside"
    assert list(found) == list(NAMES)


def test_nothing_lost_costs_next_to_nothing() -> None:
    found = interpolate({"f16": 0.0, "q4_0": 0.0}, {"q4_0": 0.0})
    assert found["f16"] <= 1e-29
    assert interpolate({"f16": 0.5}, {}) == {"f16": 0.0}


def test_prices_survive_their_file_and_refuse_damage() -> None:
    prices = Prices(({"q4_0": 0.1},) * 2, ({"q4_0": 0.2},) * 2, ModelShape("llama", (1, 1), 64, 64), {"text": "x"})
    data = json.loads(json.dumps(prices.to_json()))
    assert Prices.from_json(data) == prices
    for wrong in (-1, "0.1", None, True, float("inf"), [1], 10**400):
        data["layers"][1]["v"]["q4_0"] = wrong
        with pytest.raises(KvtunerError, match="layer 1 is damaged"):
            Prices.from_json(data)
    data["layers"] = {"0": {}}
    with pytest.raises(KvtunerError, match="'layers' has dict entries"):
        Prices.from_json(data)


def test_reasons_name_the_dear_layers_first() -> None:
    keys = [{"q4_0": cost, "q8_0": 0.0} for cost in (0.5, 0.01, 0.01, 0.02, 0.01)]
    values = [{"q4_0": 0.01, "q8_0": 0.0}] * 5
    prices = Prices(tuple(keys), tuple(values))
    pairs = [Pair("q8_0", "q4_0"), *[Pair("q4_0", "q4_0")] * 2, Pair("q8_0", "q8_0"), Pair("q4_0", "q4_0")]
    first, *others = reasons(pairs, prices)
    assert (
        first
        == "layer 0: keys have q8_0: in q4_0 they alone would cost a KLD of 0.5, 50.0 times what the median layer loses"
    )
    assert [text.split(":")[0] for text in others] == ["layer 3", "layer 3"]
    assert reasons([Pair("q4_0", "q4_0")] * 5, prices) == []


def test_layers_without_a_choice_are_not_what_others_are_held_against() -> None:
    side = [*[{"q4_0": 0.01, "q8_0": 0.0, "f16": 0.0}] * 6]
    side[4] = {**side[4], "q4_0": 0.5}
    pairs = [*[Pair("f16", "f16")] * 3, Pair("q4_0", "q4_0"), Pair("q8_0", "q4_0"), Pair("q4_0", "q4_0")]
    found = reasons(pairs, Prices(tuple(side), tuple(side)), given=[0, 1, 2])
    assert [text.partition(":")[0] for text in found] == ["layer 4"]
    assert reasons(pairs, Prices(tuple(side), tuple(side)), given=range(6)) == []
