"""What caches take by the length of a context."""

from __future__ import annotations

import pytest

from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.memory import cache_sizes, print_cache_sizes

SHAPE = ModelShape("llama", (2,) * 4, 64, 64)
PLAN = Plan((Pair.parse("q4_0"),) * 4, ends=Ends(4, 128, "q8_0"))


def test_bytes_are_those_that_a_context_allocates() -> None:
    f16, q8_0, plan = cache_sizes(PLAN, SHAPE)
    values = 2 * 4 * 2 * 64  # of one token
    assert f16.n_bytes == (values * 2 * 4096, values * 2 * 32768, values * 2 * 131072)
    assert q8_0.n_bytes[0] == values * 34 // 32 * 4096
    assert plan.n_bytes[0] == PLAN.n_bytes(SHAPE, ContextSize(4096)) > values * 18 // 32 * 4096
    assert q8_0.to_json() == {
        "name": "q8_0",
        "bytes": dict(zip(("4096", "32768", "131072"), q8_0.n_bytes, strict=True)),
    }


def test_heads_without_q8_0_are_compared_with_f16_alone() -> None:
    shape = ModelShape("llama", (2,), 40, 40)
    assert [size.name for size in cache_sizes(Plan((Pair.parse("f16"),)), shape)] == ["f16", "plan"]


def test_the_table_is_in_mib(capsys: pytest.CaptureFixture[str]) -> None:
    print_cache_sizes(PLAN, SHAPE)
    said = capsys.readouterr().out
    assert "│ f16  │       8.0 │       64.0 │       256.0 │" in said
    assert "128k tokens" in said
