"""Exact ends in the built library, in some layers of a cache and in all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Model
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.native.test_center import mean_kld

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30


@pytest.mark.parametrize("names", [("q4_0",), ("f16", "q4_0")])
def test_ends_are_worth_something(names: tuple[str, ...], model: Model, tokens: np.ndarray) -> None:
    """Layers without ends read from the quantized cache what others read exactly."""
    plan = Plan(tuple(Pair.parse(names[il % len(names)]) for il in range(N_LAYER)))
    plain, ended = (mean_kld(model, tokens, p) for p in (plan, replace(plan, ends=Ends(4, 32))))
    print(f"{names}: KLD {plain:.5f} without ends, {ended:.5f} with them")
    assert ended < 0.75 * plain
