from __future__ import annotations

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.backends import BACKENDS, backend, chosen_backend, of_types, running_fast
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape


def test_portable_pairs_run_everywhere() -> None:
    pairs = set(backend("portable").pairs())
    assert Pair("q4_0", "q4_0") in pairs
    assert all(pairs <= set(other.pairs()) for other in BACKENDS.values())
    assert all(pair.k == pair.v for pair in backend("portable").pairs())


def test_metal_runs_every_pair() -> None:
    assert set(backend("metal").pairs()) == set(backend("cpu").pairs())


def test_cuda_runs_every_pair_that_its_kernels_have() -> None:
    pairs = backend("cuda").pairs()
    assert len(pairs) == 49
    assert Pair("q8_0", "q2_nl") in pairs
    assert set(pairs) <= set(backend("cpu").pairs())


def test_types_whose_blocks_do_not_divide_the_heads_are_left_out() -> None:
    assert "q2_nl" in backend("cpu").fitting(ModelShape("llama", (1,), 64, 128)).names
    assert backend("cpu").fitting(ModelShape("llama", (1,), 80, 80)).names == ("f16",)
    assert "q2_nl" not in backend("cpu").fitting(ModelShape("llama", (1,), 96, 96)).names
    assert backend("cpu").fitting(ModelShape("gemma4", (1, 1), (64, 80), 64)).names == ("f16",)
    with pytest.raises(KvtunerError, match="heads of 80 values: name other types"):
        of_types(["q4_0"]).fitting(ModelShape("llama", (1,), 80, 80))


@pytest.mark.parametrize(("names", "words"), [([], "at least one"), (["q4_0", "q4_0"], "once"), (["q9"], "unknown")])
def test_bad_lists_of_types_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(KvtunerError, match=words):
        of_types(names)


def test_the_back_end_offered_serves_where_none_is_named() -> None:
    assert chosen_backend(None, (), "cuda") == backend("cuda")
    assert chosen_backend("metal", (), "cuda") == backend("metal")
    assert chosen_backend(None, ("q4_0",), "cuda") == of_types(("q4_0",))


def test_back_ends_that_run_all_pairs_fast() -> None:
    assert running_fast([Pair("q4_0", "q2_nl"), Pair("q8_0", "q8_0")]) == ("cpu", "cuda", "metal")
    assert running_fast([Pair("q4_0", "q4_0")]) == ("cpu", "cuda", "metal", "vulkan")
    assert running_fast([Pair("q5_1", "q4_0")]) == ("cpu", "metal", "vulkan")
