"""The whole offline stage on the small real model, at a fraction of its usual effort."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.plan.plan import Plan

pytestmark = pytest.mark.model
TYPES = ("--candidates", "q8_0,q5_0,q4_0")
SMALL = ("--tokens", "128", "--ctx", "64", "--ends", "2+8", "--trials", "3", *TYPES, "--bits", "6")


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torch")
    from kvtuner_gguf.engine.torch.reference import Reference

    return Reference(fetch_model("smollm2-135m"), "llama")


def test_the_reference_predicts_the_text(reference) -> None:
    import torch

    text = fetch_text("encyclopedia").read_text()[:4000]
    tokens = torch.tensor([reference.tokenize(text)[:256]])
    log_probs = reference.log_probs(reference.run(reference.embed(tokens))[0, 128:-1])
    perplexity = -log_probs.gather(-1, tokens[0, 129:, None]).mean()
    assert perplexity.exp() < 40, "the float32 model must be a language model: weights or RoPE are wrong otherwise"


def test_a_restarted_forward_is_the_whole_forward(reference) -> None:
    import torch

    from kvtuner_gguf.engine.torch.judge import TorchJudge
    from kvtuner_gguf.plan.pairs import Pair

    tokens = torch.arange(1000, 1096)[None]
    judge = TorchJudge(reference, tokens)
    plan = [Pair("f32", "f32")] * 20 + [Pair("q4_0", "q8_0")] * 10
    restarted = judge.kld(plan)
    whole = TorchJudge(reference, tokens)
    whole._first_change = lambda pairs: 0
    assert restarted.mean() > 0
    assert torch.equal(restarted, whole.kld(plan))
    judge.settle(plan)
    assert torch.equal(judge.kld(plan), restarted)
    assert judge.kld([Pair("f32", "f32")] * 30).mean() == pytest.approx(0, abs=1e-6)


def test_the_same_seed_gives_the_same_plan(tmp_path: Path) -> None:
    model = fetch_model("smollm2-135m")
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    for out in outs:
        result = CliRunner().invoke(main, ["tune", str(model), "-o", str(out), "--json", *SMALL])
        assert result.exit_code == 0, result.output
    assert outs[0].read_bytes() == outs[1].read_bytes()
    plan = Plan.load(outs[0])
    assert plan.bits_per_value() < plan.bits_with_ends(plan.model, 8192) <= 6
    assert plan.n_layer == 30
    assert plan.provenance["kld_mean"] > 0
    assert json.loads(result.stdout)["n_layer"] == 30


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("--bits", "2", "--ends", "none", "--no-center"),
            "2 bits per value is less than the 2.25 to 16 bits per value of the candidates: raise --bits",
        ),
        (
            ("--bits", "2.25", "--ends", "none"),
            "less than the 2.28125 to 16 bits per value of the candidates with turned centers for 8192 tokens: raise",
        ),
        (
            ("--bits", "2.25"),
            "less than the 2.41821 to 16 bits per value of the candidates with ends 4+128:q8_0 and turned centers for",
        ),
        (("--ends", "4"), "the ends are '4': give FIRST+LAST or FIRST+LAST:TYPE"),
        (("--candidates", "q9_9"), "q9_9"),
        (("--text", "/nowhere"), "there is no such file"),
        (("--mib", "100"), "--for-ctx"),
        (("--bits", "4", "--max-kld", "0.1"), "one goal"),
        (("--backend", "abacus"), "'cpu', 'cuda', 'metal', 'vulkan', 'portable'"),
        (("--tokens", "64"), "at least one context"),
    ],
)
def test_bad_input_is_one_line(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    model = fetch_model("smollm2-135m")
    result = CliRunner().invoke(main, ["tune", str(model), "-o", str(tmp_path / "x.json"), *args])
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert words in line


def test_the_result_is_told_before_llama_cpp_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        """As the end of the process: nothing that comes after is told."""

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr("kvtuner_gguf.cli.tune._native_row", crash)
    out = tmp_path / "a.json"
    runner = CliRunner()
    with runner.isolation() as (stdout, *_), pytest.raises(Crash):
        main(["tune", str(fetch_model("smollm2-135m")), "-o", str(out), *SMALL], standalone_mode=False)
    said = stdout.getvalue().decode()
    assert f"{out}\n" in said
    assert "held-out text" in said
    assert len(Plan.load(out).pairs) == 30
