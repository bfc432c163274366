"""Caches judged against f16; the built ``llama-perplexity`` is the reference."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.by_llama import _spans, evaluate
from kvtuner_gguf.evaluation.chunks import Sample
from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.server.llama_server import find_tool

N_LAYER, N_CTX, N_CHUNKS = 30, 256, 2
SHAPE = ModelShape("llama", (3,) * N_LAYER, 64, 64)
FIELDS = [
    "name",
    "bits_per_value",
    "bits_with_ends",
    "kv_bytes_per_token",
    "kld_mean",
    "kld_median",
    "kld_p999",
    "same_top",
    "ppl",
    "ppl_ratio",
    "kv_mib",
    "kld_se",
    "kind",
]


class StandInModel:
    def __init__(self, n_tokens: int, bos: int | None) -> None:
        self.n_tokens, self.bos = n_tokens, bos

    def tokenize(self, text: str) -> np.ndarray:
        return np.arange(self.n_tokens, dtype=np.int32)


@pytest.mark.parametrize(("bos", "first"), [(99, [99, 99]), (None, [0, 8])])
def test_every_chunk_starts_with_bos_if_the_model_wants_it(bos: int | None, first: list[int]) -> None:
    chunks = Sample("", n_ctx=8, n_chunks=2).chunks(StandInModel(20, bos))
    assert [chunk[0] for chunk in chunks] == first
    assert [list(chunk[1:]) for chunk in chunks] == [list(range(1, 8)), list(range(9, 16))]


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(KvtunerError, match="20 tokens, less than 3 chunks of 8: give at most --chunks 2"):
        Sample("", n_ctx=8, n_chunks=3).chunks(StandInModel(20, None))


@pytest.mark.parametrize(("n_ctx", "n_batch"), [(512, 256), (512, 512), (100, 7), (5, 4)])
def test_spans_score_the_second_half(n_ctx: int, n_batch: int) -> None:
    spans = list(_spans(n_ctx, n_batch))
    tokens = [(i, span.scored) for span in spans for i in range(span.start, span.stop)]
    assert tokens == [(i, i >= n_ctx // 2) for i in range(n_ctx - 1)]
    assert max(span.stop - span.start for span in spans) <= n_batch


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample(fetch_text("encyclopedia").read_text(), N_CTX, N_CHUNKS)


@pytest.mark.native
@pytest.mark.model
def test_it_agrees_with_llama_perplexity(sample: Sample, tmp_path: Path) -> None:
    model = fetch_model("smollm2-135m")
    f16, row = evaluate(model, SHAPE, {"pair": Pair("q8_0", "q4_0")}, sample)
    common = ["--model", model, "--file", fetch_text("encyclopedia"), "--ctx-size", N_CTX, "--batch-size", N_CTX]
    common += ["--chunks", N_CHUNKS, "--flash-attn", "on", "--kl-divergence-base", tmp_path / "base"]
    base = perplexity(*common)
    Plan.uniform(Pair("q8_0", "q4_0"), N_LAYER).save(tmp_path / "plan.json")
    other = perplexity(*common, "--kl-divergence", "--kv-config", tmp_path / "plan.json")
    assert f16.ppl == pytest.approx(number(r"PPL = +(\S+)", base), rel=2e-5)
    assert row.ppl == pytest.approx(number(r"Mean PPL\(Q\) +: +(\S+)", other), rel=2e-5)
    assert row.same_top == pytest.approx(number(r"Same top p: +(\S+)", other), abs=1e-3)
    for value, name in ((row.kld_mean, "Mean  "), (row.kld_median, "Median"), (row.kld_p999, "99.9% ")):
        assert value == pytest.approx(number(rf"{name} +KLD: +(\S+)", other), rel=0.01)


def perplexity(*arguments: object) -> str:
    command = [str(find_tool("llama-perplexity")), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return result.stdout + result.stderr


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1])


@pytest.mark.native
@pytest.mark.model
def test_command(tmp_path: Path, sample: Sample) -> None:
    mixed = Plan(tuple(Pair.parse(("q8_0/q4_0", "f16/f16", "q5_1/q4_1")[il % 3]) for il in range(N_LAYER)))
    Plan.uniform(Pair("q8_0", "q4_0"), N_LAYER).save(tmp_path / "same.json")
    mixed.save(tmp_path / "mixed.json")
    (tmp_path / "text").write_text(sample.text[:20_000])
    arguments = ["eval", str(fetch_model("smollm2-135m")), "--uniform", "q8_0/q4_0", "--text", str(tmp_path / "text")]
    for name in ("same", "mixed"):
        arguments += ["--config", str(tmp_path / f"{name}.json")]
    arguments += ["--ctx", "128", "--chunks", "1", "--png", str(tmp_path / "chart.png"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == ["f16/f16", "same", "mixed", "q8_0/q4_0"]
    assert all(list(row) == FIELDS for row in rows.values())
    assert rows["f16/f16"]["kld_mean"] == 0
    assert {**rows["same"], "name": ""} == {**rows["q8_0/q4_0"], "name": ""}
    assert rows["mixed"]["bits_per_value"] == pytest.approx(mixed.bits_per_value(SHAPE))
    assert rows["mixed"]["kv_mib"] == mixed.bytes_per_token(SHAPE) * 256 / 2**20
    assert 0 < rows["mixed"]["kld_mean"] < 0.1
    assert (tmp_path / "chart.png").exists()


@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--uniform", "q9_0"], "unknown cache type 'q9_0'", 2),
        (["--config", "{plan}"], "plan.json: the plan has 3 layers, the model 30", 1),
        (["--text", "{binary}"], "as UTF-8 text", 1),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, status: int, tmp_path: Path) -> None:
    Plan.uniform(Pair("q8_0", "q8_0"), 3).save(tmp_path / "plan.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    files = {"plan": tmp_path / "plan.json", "binary": tmp_path / "binary"}
    words = [argument.format(**files) for argument in arguments]
    result = CliRunner().invoke(main, ["eval", str(fetch_model("smollm2-135m")), *words])
    assert result.exit_code == status
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
