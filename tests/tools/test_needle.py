"""The needle: its prompts, its table, and a decoder that continues against runs over the whole sequence."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import incremental  # noqa: E402
import needle as tool  # noqa: E402
from incremental import Decoder  # noqa: E402
from needle import Answer, Needle, prompt, table  # noqa: E402

from kvtuner_gguf.engine.torch.reference import Reference  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.plan.centers import Centers  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import EXACT, Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402

NEEDLE = Needle("Alba Adler", "01234")
TEXT = "One sentence. Another one, no longer.\nA line without an end\nThe last. " * 40


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def words(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


@pytest.mark.parametrize("depth", [0, 10, 50, 90, 100])
def test_the_fact_stands_between_sentences_at_its_depth(depth: float) -> None:
    tokens = prompt(NEEDLE, letters, TEXT, 1200, depth)
    assert len(tokens) == 1200
    before, after = words(tokens).split(NEEDLE.fact)
    assert not before or before.endswith((".", "\n"))
    n_text = 1200 - len(NEEDLE.fact) - len(NEEDLE.question)
    assert 0 <= depth / 100 * n_text - len(before) < 25
    assert after.endswith(NEEDLE.question)
    assert TEXT.startswith(before + after.removesuffix(NEEDLE.question))


def test_a_short_text_is_refused() -> None:
    with pytest.raises(KvtunerError, match="give a smaller --at"):
        prompt(NEEDLE, letters, "Short.", 1200, 50)


def test_needles_differ_by_seed_alone() -> None:
    made = [Needle.made_up(random.Random(f"0 8192 10 {i}")) for i in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert made[0].code.isdigit()
    assert len(made[0].code) == 5


def test_a_table_counts_what_was_found() -> None:
    answers = [
        Answer(plan, at, 50, NEEDLE, text)
        for plan, at, text in (
            ("none", 64, " 01234."),
            ("none", 64, " 0123"),
            ("none", 128, "01234"),
            ("p.json", 64, "no"),
            ("p.json", 128, "01234"),
        )
    ]
    head, *rows = table(answers).splitlines()
    assert head.split() == ["plan", "64", "50", "%", "128", "50", "%", "all"]
    assert [row.split() for row in rows] == [["none", "1/2", "1/1", "2/3"], ["p.json", "0/1", "1/1", "1/2"]]


def plan(kind: str) -> Plan:
    """Of two layers."""
    centers = Centers.from_arrays([torch.linspace(-1, 1, 128).numpy(), None])
    quantized = (Pair("q4_0", "q8_0"), Pair("q5_0", "q4_0"))
    return {
        "none": Plan.uniform(EXACT, 2),
        "quantized": Plan(quantized, centers=centers),
        "ends": Plan(quantized, centers=centers, ends=Ends(2, 7)),
        "one layer": Plan((EXACT, Pair("q4_0", "f16")), ends=Ends(0, 5, "q8_0")),
    }[kind]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def decoder(request: pytest.FixtureRequest, tiny, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(tiny(tmp_path_factory.mktemp("tiny") / "model.gguf", request.param), request.param)


def whole_run(reference: Reference, plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
    reading = reference.reading(plan.centers, plan.ends)
    return Reference.logits(reading, _full(reading).run(reading.embed(tokens[None]), plan.pairs)[0])


def _full(reading: Reference) -> Reference:
    """With the attention of a reference that keeps nothing."""
    reading.__class__ = Reference
    return reading


@pytest.mark.parametrize("kind", ["none", "quantized", "ends", "one layer"])
def test_a_sequence_in_parts_is_as_in_one_run(
    kind: str, decoder: Decoder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incremental, "CHUNK", 16)
    monkeypatch.setattr(incremental, "ROWS", 5)
    tokens = torch.tensor(decoder.tokenize(text)[:60])
    whole = whole_run(decoder, plan(kind), tokens)
    decoder.begin(plan(kind), len(tokens))
    at = 0
    for n in (37, 1, 1, 20, 1):
        found = decoder.feed(tokens[at : at + n])
        at += n
        torch.testing.assert_close(found, whole[at - 1], rtol=1e-3, atol=1e-3)


def test_plans_differ(decoder: Decoder, text: str) -> None:
    """So that the test above can fail."""
    tokens = torch.tensor(decoder.tokenize(text)[:60])
    last = {kind: whole_run(decoder, plan(kind), tokens)[-1] for kind in ("none", "quantized", "ends", "one layer")}
    for a, b in (("none", "quantized"), ("quantized", "ends"), ("none", "one layer"), ("ends", "one layer")):
        assert (last[a] - last[b]).abs().max() > 0.02, (a, b)


def test_greedy_tokens_are_the_most_likely_ones(decoder: Decoder, text: str) -> None:
    tokens = torch.tensor(decoder.tokenize(text)[:40])
    decoder.begin(plan("ends"), 44)
    found = decoder.greedy(tokens, 4)
    for i, token in enumerate(found):
        before = torch.cat((tokens, tokens.new_tensor(found[:i])))
        assert whole_run(decoder, plan("ends"), before)[-1].argmax() == token


def test_the_tool_asks_all_plans_the_same(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("\n" + TEXT * 2)
    monkeypatch.setattr(tool, "fetch_text", lambda name: text)
    model, plan_file, out = tiny(tmp_path / "model.gguf", "llama"), tmp_path / "plan.json", tmp_path / "out.json"
    plan("ends").save(plan_file)
    options = ["--at", "200", "--depth", "50", "--repeat", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["needle.py", str(model), "--plan", "none", "--plan", str(plan_file), *options])
    tool.main()
    rows = json.loads(out.read_text())
    assert [row["plan"] for row in rows] == ["none", str(plan_file)] * 2
    assert rows[0]["needle"] == rows[1]["needle"] != rows[2]["needle"]
    assert not any(row["found"] for row in rows)
    assert capsys.readouterr().out.splitlines()[-2].split() == ["none", "0/2", "0/2"]
