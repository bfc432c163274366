"""The fingerprint has one definition: Python and the library give the same for the same plan."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Model, open_model, patched_llama_cpp
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import TYPES, Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30


def random_plan(seed: int) -> Plan:
    """Some have centers, most of these with a span, some scales, but not in all layers, and some exact ends."""
    rng = random.Random(seed)
    pairs = tuple(Pair(*rng.choices(tuple(CACHE_TYPES), k=2)) for _ in range(N_LAYER))
    centers = [_gaussian(rng) if il % 4 else None for il in range(N_LAYER)]
    ends = Ends(seed, 32, rng.choice(TYPES)) if seed % 3 else None
    span = 16 << seed if seed % 5 else None
    scales = Scales.from_arrays([np.exp(_gaussian(rng)) if il % 3 else None for il in range(N_LAYER)])
    return Plan(
        pairs,
        centers=Centers.from_arrays(centers, span) if seed % 2 else None,
        ends=ends,
        scales=scales if seed % 4 in (1, 2) else None,
    )


def _gaussian(rng: random.Random) -> np.ndarray:
    return np.array([rng.gauss(0, 1) for _ in range(192)])


def test_python_and_the_library_agree() -> None:
    kvtuner = patched_llama_cpp().kvtuner
    with open_model(fetch_model("smollm2-135m"), n_threads=2) as model:
        for seed in range(10):
            plan = random_plan(seed)
            with model.context(plan, 256, 32) as context:
                assert kvtuner.plan_fingerprint(context._pointer) == plan.fingerprint
                assert kvtuner.plan_source(context._pointer) == "JSON"
        with model.context(Pair.parse("q8_0"), 256, 32) as context:
            assert kvtuner.plan_fingerprint(context._pointer) is None
            assert kvtuner.plan_source(context._pointer) == "none"


def test_a_context_keeps_its_own_plan() -> None:
    """Though another is selected afterwards for the same model."""
    kvtuner = patched_llama_cpp().kvtuner
    first, second = random_plan(0), random_plan(1)
    with (
        open_model(fetch_model("smollm2-135m"), n_threads=2) as model,
        model.context(first, 256, 32) as a,
        model.context(second, 256, 32) as b,
        model.context(Pair.parse("f16"), 256, 32),
    ):
        assert [kvtuner.plan_fingerprint(c._pointer) for c in (a, b)] == [first.fingerprint, second.fingerprint]


def selected_fingerprint(model: Model, plan: Plan, center: bool, ends: bool) -> str | None:
    """That of a context with what is wanted of the plan."""
    lib = patched_llama_cpp()
    lib.kvtuner.set_kv_config(model._pointer, plan.to_json(), center, ends)
    params = model._context_params(Pair.parse("f16"), 256, 32, True)
    context = lib.llama_init_from_model(model._pointer, params)
    try:
        return lib.kvtuner.plan_fingerprint(context)
    finally:
        lib.llama_free(context)


def test_centers_and_ends_can_each_be_left_out() -> None:
    plan = random_plan(1)
    expected = {
        (True, True): plan,
        (False, True): plan.without_centers(),
        (True, False): plan.without_ends(),
        (False, False): plan.without_centers().without_ends(),
    }
    assert len({wanted.fingerprint for wanted in expected.values()}) == 4
    with open_model(fetch_model("smollm2-135m"), n_threads=2) as model:
        for (center, ends), wanted in expected.items():
            assert selected_fingerprint(model, plan, center, ends) == wanted.fingerprint


def test_the_file_stores_what_the_library_reports(tmp_path: Path) -> None:
    from kvtuner_gguf.gguffile.keys import Keys
    from kvtuner_gguf.gguffile.reader import read_gguf

    path = tmp_path / "model.gguf"
    annotate(fetch_model("smollm2-135m"), random_plan(5), path)
    llama = patched_llama_cpp().Llama(str(path), n_ctx=256, verbose=False)
    stored = read_gguf(path).get(Keys.PLAN_FINGERPRINT)
    assert patched_llama_cpp().kvtuner.plan_fingerprint(llama._ctx.ctx) == stored == random_plan(5).fingerprint
