"""The command that a result names to be typed next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.gguffile.reader import read_gguf
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.shell import annotating
from tests.conftest import write_model
from tests.tiny import write_tiny


def test_what_plan_names_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "a model.gguf")
    args = ["plan", str(model), "--uniform", "q8_0", "--no-center", "-o", "my plan.json"]
    said = CliRunner().invoke(main, args).stdout.splitlines()[-1]
    assert said.startswith("next: kvtuner-gguf annotate ")
    assert json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)["next"] == [said.removeprefix("next: ")]
    done = CliRunner().invoke(main, shlex.split(said)[2:])
    assert done.exit_code == 0, done.output
    found = plan_of([read_gguf(tmp_path / "a model-kv.gguf")])
    assert found is not None
    assert found.pairs == Plan.load(tmp_path / "my plan.json").pairs


def test_stages_name_the_search_of_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named is typed: it is refused where text, tokens, context or seed are others."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    write_tiny(Path("m.gguf"), "llama")
    Path("my text.txt").write_text(" ".join(f"word{i * i % 977}" for i in range(4000)))
    text = ["--text", "my text.txt", "--tokens", "64", "--ctx", "32", "--seed", "5"]
    profile = ["profile", "m.gguf", "-o", "p.json", *text, "--ends", "none", "--candidates", "q8_0,q4_0"]
    for args in (profile, ["prune", "p.json", "-o", "c.json"], ["cluster", "p.json", "c.json", "-o", "g.json"]):
        done = CliRunner().invoke(main, args)
        assert done.exit_code == 0, done.output
        said = done.stdout.splitlines()[-1]
        if args[0] == "profile":
            assert said == "next: kvtuner-gguf prune p.json"
            continue
        words = ["m.gguf" if word == "MODEL.gguf" else word for word in shlex.split(said)[2:]]
        searched = CliRunner().invoke(main, [*words, "--ends", "none", "--trials", "8"])
        assert searched.exit_code == 0, searched.output


def test_shards_are_annotated_in_place() -> None:
    said = annotating(Path("m-00002-of-00003.gguf"), Path("p.json"))
    assert said == "kvtuner-gguf annotate m-00002-of-00003.gguf p.json --in-place"


def test_a_table_of_the_paper_names_its_next_command_in_json_too(tmp_path: Path) -> None:
    table, out = tmp_path / "table.yaml", tmp_path / "plan.json"
    table.write_text("".join(f"{il}: {{nbits_key: 8, nbits_value: 4}}\n" for il in range(4)))
    for args, model in (([], "MODEL.gguf"), (["--model", str(write_model(tmp_path / "m.gguf"))], tmp_path / "m.gguf")):
        shown = CliRunner().invoke(main, ["import-kvtuner", str(table), "-o", str(out), *args, "--json"])
        assert shown.exit_code == 0, shown.output
        assert json.loads(shown.stdout)["next"] == [annotating(Path(model), out)]
