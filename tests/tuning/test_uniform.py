"""The uniform pairs that a front is compared with."""

from __future__ import annotations

from kvtuner_gguf.plan.backends import BACKENDS
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.uniform import uniform_pairs, uniform_points


def test_one_pair_for_each_number_of_bits() -> None:
    names = [pair.k for pair in uniform_pairs(BACKENDS["cpu"].names)]
    assert names == ["q2_nl", "q3_nl", "q4_0", "q5_0", "q8_0"]
    assert uniform_pairs(["f16"]) == []


def test_layers_without_a_cache_are_left_alone() -> None:
    (found,) = uniform_points(lambda pairs: float(len(pairs)), ["f16", "q4_0"], ModelShape("llama", (2, 0), 64, 64))
    assert found.pairs == (Pair.parse("q4_0"), F16)
    assert found.loss == 2.0
