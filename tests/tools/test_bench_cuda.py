"""The rows and the models of the benchmark of CUDA builds."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import gguf
import pytest
from bench_cuda import cache_rate, depth_groups, options_of, plan_named
from synthetic_models import SHAPES, Shape, write_model

from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan


def test_a_row_names_types_and_ends() -> None:
    plan = plan_named("q4_0/q2_nl+4+128", 3)
    assert plan.ends == Ends(4, 128, "f16")
    assert plan.pairs == (Pair("q4_0", "q2_nl"),) * 3
    assert plan_named("q8_0/q8_0", 2).ends is None


def test_the_papers_table_has_the_size_that_the_readme_names() -> None:
    assert plan_named("paper", 32).bits_per_value() == pytest.approx(3.640625)


def test_a_decode_step_reads_the_cache_of_every_token() -> None:
    bytes_per_token = SHAPES["llama-3.1-8b"].n_values * 2.0
    assert bytes_per_token == 131072
    assert cache_rate("tg @8192", 10.0, bytes_per_token) == 10 * 8192 * 131072
    assert cache_rate("32x4096", 10.0, bytes_per_token) == 10 * 4096 * 131072
    assert cache_rate("tg @0", 10.0, bytes_per_token) == 0
    assert cache_rate("pp @8192", 10.0, bytes_per_token) is None


def test_a_model_has_its_shape_and_finite_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(Shape(2, 64, 128, 4, 2, 32, 96), path)
    shape = model_shape(read_model(path))
    assert [(layer.n_head_kv, layer.head_dim_k) for layer in shape.layers] == [(2, 32)] * 2
    values = gguf.dequantize(gguf.GGUFReader(path).tensors[0].data, gguf.GGMLQuantizationType.Q4_0)
    assert 0 < abs(values).max() < 0.1


def test_a_row_of_the_base_has_its_own_types(tmp_path: Path) -> None:
    args = Namespace(base=Path("stock"), patched=Path("ours"), folder=tmp_path)
    assert options_of(args, "base", 4) == (Path("stock"), ("-ctk", "f16", "-ctv", "f16"))
    assert options_of(args, "base:q8_0/q4_0", 4) == (Path("stock"), ("-ctk", "q8_0", "-ctv", "q4_0"))
    folder, (option, config) = options_of(args, "q8_0/q4_0", 4)
    assert (folder, option) == (Path("ours"), "--kv-config")
    assert Plan.load(Path(config)).pairs == (Pair("q8_0", "q4_0"),) * 4


@pytest.mark.parametrize(
    ("depths", "groups"),
    [("0,8192,65536", [("0", 8), ("8192,65536", 2)]), ("8192", [("8192", 2)]), ("0", [("0", 8)])],
)
def test_depth_0_is_repeated_more_often(depths: str, groups: list[tuple[str, int]]) -> None:
    assert depth_groups(depths, 2) == groups
