"""Every command refuses, before it reads anything, an output that it could not replace at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvtuner_gguf.cli import COMMANDS, main
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import N_LAYER

# inputs with nothing of use in them: a command that reads first tells of them, not of the output
WRITERS = {
    "annotate": ["in", "in", "-o", "OUT"],
    "center": ["in", "in", "-o", "OUT"],
    "cluster": ["in", "in", "-o", "OUT"],
    "eval": ["there", "--png", "OUT"],
    "fetch-model": ["smollm2-135m", "-o", "OUT"],
    "import-kvtuner": ["in", "-o", "OUT"],
    "inspect": ["in", "--png", "OUT"],
    "plan": ["in", "--uniform", "q4_0", "-o", "OUT"],
    "profile": ["in", "-o", "OUT"],
    "prune": ["in", "-o", "OUT"],
    "report": ["in", "-o", "OUT"],
    "search": ["in", "in", "in", "-o", "OUT"],
    "search front": ["in", "in", "in", "-o", "there", "--front", "OUT"],
    "strip": ["in", "-o", "OUT"],
    "tune": ["in", "-o", "OUT"],
    "tune html": ["in", "-o", "there", "--html", "OUT"],
    "tune png": ["in", "-o", "there", "--png", "OUT"],
}
READERS = {"completion", "demo", "verify"}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def test_no_command_is_forgotten() -> None:
    assert {name.split()[0] for name in WRITERS} | READERS == set(COMMANDS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("in", "in2", "there"):
        (tmp_path / name).write_text("kept")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("fifo", "it is a pipe"),
        ("link", "it is a pipe"),
        ("no/out", "there is no folder /"),
        ("folder", "it is a folder"),
    ],
)
@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_cannot_be_replaced_is_refused_first(name: str, out: str, words: str, folder: Path) -> None:
    result = run(name.split()[0], *(out if word == "OUT" else word for word in WRITERS[name]))
    assert result.exit_code == 2, result.output
    assert f": cannot write {out}: " in result.output
    assert words in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["fifo", "folder", "in", "in2", "link", "there"]
    assert (folder / "fifo").is_fifo()
    assert (folder / "there").read_text() == "kept"


@pytest.mark.parametrize(
    "args",
    [
        ["annotate", "in", "there", "-o", "there"],
        ["center", "there", "in", "-o", "there"],
        ["center", "in", "in", "--text", "there", "-o", "there"],
        ["cluster", "in", "there", "-o", "there"],
        ["eval", "there", "--png", "there"],
        ["import-kvtuner", "there", "-o", "there"],
        ["plan", "there", "--uniform", "q4_0", "-o", "there"],
        ["plan", "in", "--uniform", "q4_0", "--text", "there", "-o", "there"],
        ["profile", "there", "-o", "there"],
        ["prune", "there", "-o", "there"],
        ["search", "in", "in", "there", "-o", "there"],
        ["tune", "there", "-o", "there"],
        ["tune", "in", "--text", "there=2", "-o", "there"],
    ],
)
@pytest.mark.parametrize("by_link", [False, True])
def test_an_input_is_never_overwritten(args: list[str], by_link: bool, folder: Path) -> None:
    if by_link:
        (folder / "other").symlink_to("there")
        args = [*args[:-1], "other"]
    result = run(*args)
    assert result.exit_code == 2
    assert "would be overwritten" in result.output
    assert (folder / "there").read_text() == "kept"


def test_two_outputs_need_two_names(folder: Path) -> None:
    stages = ["search", "in", "in", "in2"]
    for args in (["tune", "in", "-o", "a", "--png", "a"], [*stages, "-o", "a", "--front", "./a"]):
        assert "to hold two outputs" in run(*args).output
    for args in (["tune", "in", "-o", "a.tune"], ["profile", "in", "-o", "w", "--work", "w"]):
        assert "is also the folder of what is finished" in run(*args).output


def test_other_names_of_a_file_are_told_and_keep_what_they_held(model: Path, tmp_path: Path) -> None:
    other, plan = tmp_path / "other.gguf", tmp_path / "plan.json"
    os.link(model, other)
    before = other.read_bytes()
    Plan.uniform(Pair.parse("q8_0"), N_LAYER).save(plan)
    result = run("annotate", model, plan, "--in-place")
    assert result.exit_code == 0
    assert f"{model} has another name (hard links), which will keep what it holds now" in result.output
    assert other.read_bytes() == before != model.read_bytes()
    assert "hard links" not in run("annotate", model, plan, "--in-place").output
