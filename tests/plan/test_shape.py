"""The shape of a model's layers: cells, bytes in a context, bits by weight, and its JSON."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import LayerShape, ModelShape
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.tuning.goal import Goal

F16, Q8 = Pair.parse("f16"), Pair.parse("q8_0")
MIB = 2**20
PLAIN = ModelShape("llama", (2, 0, 2), 64, 64, "f00d")
# the layers of a small Gemma 3: of six the last sees all tokens
WINDOWED = ModelShape("gemma3", (1,) * 18, 256, 256, window=(*(512,) * 5, 0) * 3)
MIXED = ModelShape.of_layers(
    "gemma4",
    [
        LayerShape(2, 64, 64, window=512),
        LayerShape(1, 128, 128),
        LayerShape(2, 64, 64, window=512, keeps=False, source=0),
        LayerShape(1, 128, 128, keeps=False),
    ],
)


def f16(shape: ModelShape) -> Plan:
    return Plan.uniform(F16, shape.n_layer)


@pytest.mark.parametrize(
    ("context", "cells"),
    [
        (ContextSize(32768), (32768, 1024)),
        (ContextSize(1000), (1024, 1024)),
        (ContextSize(1), (256, 256)),
        (ContextSize(4096, n_ubatch=2048), (4096, 2560)),
        (ContextSize(4096, n_ubatch=1), (4096, 768)),
        (ContextSize(4096, swa_full=True), (4096, 4096)),
        (ContextSize(32768, n_seq_max=4), (32768, 4096)),
        (ContextSize(32768, n_seq_max=4, unified=True), (32768, 2560)),
        (ContextSize(1000, n_seq_max=3), (1536, 1536)),
    ],
)
def test_cells(context: ContextSize, cells: tuple[int, int]) -> None:
    assert (context.cells(0), context.cells(512)) == cells


def test_bytes_of_a_model_with_windows() -> None:
    assert f16(WINDOWED).n_bytes(WINDOWED, ContextSize(32768)) == 111 * MIB
    assert f16(WINDOWED).n_bytes(WINDOWED, ContextSize(32768, swa_full=True)) == 576 * MIB


def test_layers_weigh_by_their_cells() -> None:
    assert set(WINDOWED.weights) == {1, 32}
    assert replace(WINDOWED, n_ctx=1024).weights == (1,) * 18
    pairs = tuple(Q8 if layer.window else F16 for layer in WINDOWED.layers)
    assert Plan(pairs).bits_per_value(WINDOWED) == pytest.approx((15 * 8.5 + 96 * 16) / 111)
    assert Plan(pairs).payload_bits(WINDOWED) == pytest.approx((15 * 8 + 96 * 16) / 111)
    assert Plan(pairs).bits_per_value(replace(WINDOWED, n_ctx=1024)) == pytest.approx((15 * 8.5 + 3 * 16) / 18)


def test_without_windows_a_context_changes_nothing() -> None:
    assert PLAIN.weights == (1, 0, 1)
    assert replace(PLAIN, n_ctx=1) == PLAIN
    assert f16(PLAIN).size(PLAIN) == f16(PLAIN).bytes_per_token(PLAIN) == 2 * 2 * 2 * 64 * 2
    assert f16(PLAIN).n_bytes(PLAIN, ContextSize(512)) == 512 * f16(PLAIN).bytes_per_token(PLAIN)


def test_a_budget_of_memory_is_that_of_the_context() -> None:
    goal = Goal(mib=111, n_ctx=32768)
    sizes = goal.sizes(WINDOWED)
    assert sizes.plan(f16(WINDOWED).pairs) == goal.budget(sizes)
    less = Goal(mib=111 - 1 / MIB, n_ctx=32768)
    assert less.budget(sizes) < sizes.plan(f16(WINDOWED).pairs)
    long = Goal(mib=207, n_ctx=65536)
    assert long.sizes(WINDOWED).plan(f16(WINDOWED).pairs) == long.budget(long.sizes(WINDOWED))
    assert Goal(bits=16).budget(Sizes(WINDOWED)) == Sizes(WINDOWED).plan(f16(WINDOWED).pairs)


def test_layers_that_read_another_cache_have_no_bytes() -> None:
    assert [layer.keeps for layer in MIXED.layers] == [True, True, False, False]
    assert [layer.source for layer in MIXED.layers] == [None, None, 0, None]
    assert MIXED.sizes_k == [128, 128, 128, 128]
    assert f16(MIXED).bytes_per_token(MIXED) == 2 * 2 * (128 + 128)
    assert f16(MIXED).n_bytes(MIXED, ContextSize(4096)) == 2 * 2 * 128 * (1024 + 4096)


def test_latent_attention_has_one_tensor() -> None:
    shape = ModelShape("deepseek2", (1, 1), 576, 512, latent=True)
    assert f16(shape).n_bytes(shape, ContextSize(256)) == 2 * 256 * 576 * 2
    assert Plan.uniform(Q8, 2).bits_per_value(shape) == 8.5


def test_a_model_without_a_cache_has_no_bits() -> None:
    shape = ModelShape("mamba", (2, 2), 64, 64, cache=(None, None))
    with pytest.raises(KvtunerError, match="no layer with a KV cache"):
        Plan.uniform(Q8, 2).bits_per_value(shape)


def test_blocks_matter_only_where_there_is_a_cache() -> None:
    shape = ModelShape("x", (1, 1), (64, 80), 64)
    with pytest.raises(
        KvtunerError, match=r"layer 1: K type q8_0 has blocks of 32 values, which do not divide the .* 80"
    ):
        Plan.uniform(Q8, 2).check(shape)
    Plan.uniform(Q8, 2).check(replace(shape, cache=(0, None)))


def test_the_json_of_an_ordinary_model_has_no_more_than_before() -> None:
    expected = {"architecture": "llama", "n_layer": 3, "n_head_kv": [2, 0, 2], "head_dim_k": 64, "head_dim_v": 64}
    assert PLAIN.to_json() == {**expected, "fingerprint": "f00d"}


@pytest.mark.parametrize(
    "shape",
    [PLAIN, WINDOWED, MIXED, replace(MIXED, latent=True, n_ctx=8192), replace(PLAIN, turned=(1, 1, 0))],
)
def test_json_gives_the_shape_back(shape: ModelShape) -> None:
    again = ModelShape.from_json(shape.to_json())
    assert (again, again.n_ctx, again.layers) == (shape, shape.n_ctx, shape.layers)


def test_equal_entries_are_one_number() -> None:
    data = {**PLAIN.to_json(), "head_dim_k": [64, 64, 64], "window": [0, 0, 0]}
    assert ModelShape.from_json(data) == PLAIN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim_k": [64, 64]}, "'model.head_dim_k' must be one count per layer (3)"),
        ({"head_dim_v": [64, -1, 64]}, "'model.head_dim_v' must be one count per layer (3)"),
        ({"head_dim_k": "64"}, "'model.head_dim_k' is '64', not a count"),
        ({"window": [512]}, "'model.window' must be one count per layer (3)"),
        ({"window": True}, "'model.window' is True, not a count"),
        ({"cache": [0, 1, 3]}, "'model.cache' must be one layer or null per layer (3)"),
        ({"cache": 0}, "'model.cache' must be one layer or null per layer (3)"),
        ({"latent": 1}, "'model.latent' is 1, not true or false"),
        ({"n_ctx": -1}, "'model.n_ctx' is -1, not a count"),
        ({"turned": [1]}, "'model.turned' must be one count per layer (3)"),
        ({"turned": True}, "'model.turned' is True, not a count"),
    ],
)
def test_wrong_json_is_named(change: dict, words: str) -> None:
    with pytest.raises(KvtunerError) as caught:
        ModelShape.from_json({**PLAIN.to_json(), **change})
    assert str(caught.value) == f"{words}: tune the model again"
