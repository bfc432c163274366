"""The demonstration with a ready plan in place of the tuning, and its way of skipping and comparing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from kvtuner_gguf.demo import Demo, DemoSettings
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.layers import pair_lines, ranges

PLAN = Plan(tuple(Pair.parse(("q8_0/q5_1", "q8_0/q4_0", "q5_1/q4_0")[il % 3]) for il in range(30)))


@pytest.fixture
def tuned_at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`tune` writes `PLAN`; the names of all commands that the demo runs."""
    ran = []
    run = Demo._command

    def command(self: Demo, *words: object, capture: bool = False) -> str:
        ran.append(str(words[0]))
        if words[0] != "tune":
            return run(self, *words, capture=capture)
        PLAN.save(Path(words[words.index("-o") + 1]))
        return ""

    monkeypatch.setattr(Demo, "_command", command)
    return ran


def run_demo(folder: Path, chunks: int = 1, force: bool = False) -> str:
    said: list[str] = []
    Demo(folder, DemoSettings(bits=6.5, chunks=chunks), said.append).run(force)
    return "\n".join(said)


@pytest.mark.native
@pytest.mark.model
def test_the_whole_way(tuned_at_once: list[str], tmp_path: Path) -> None:
    said = run_demo(tmp_path / "demo")
    assert tuned_at_once == ["tune", "annotate", "eval", "inspect"]
    assert re.findall(r"=== (\d)/8", said) == [*"12345678"]
    assert "give the same 30 pairs, 3 of them distinct" in said
    assert said.count(ranges(range(0, 30, 3))) == 3
    assert f"{PLAN.pairs[0]}" in said
    assert {"plan.json", "eval.json", "eval.png", "server.log"} < {path.name for path in (tmp_path / "demo").iterdir()}
    options = ["demo", "--dir", str(tmp_path / "demo"), "--chunks", "1", "--json"]
    program = "from kvtuner_gguf.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    assert Path(data["model"]).exists()
    assert [row["name"] for row in data["rows"]][1] == "auto"
    assert "give the same 30 pairs" in done.stderr
    tuned_at_once.clear()
    assert run_demo(tmp_path / "demo").count("done before, skipped") == 3
    assert tuned_at_once == ["inspect"]


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    made = Demo(tmp_path, DemoSettings(bits=6.5, chunks=1), lambda line: None)
    made._prepare(force=False)
    for path in (made._plan, made._model, made._rows, made._chart):
        path.touch()
    made._tuning.mkdir()
    return made


def test_the_same_settings_keep_what_is_done(demo: Demo) -> None:
    demo._prepare(force=False)
    assert demo._is_done(demo._plan, demo._model, demo._rows, demo._chart)


@pytest.mark.parametrize(("bits", "force"), [(6.5, True), (5.0, False)])
def test_force_and_other_settings_forget_it(demo: Demo, tmp_path: Path, bits: float, force: bool) -> None:
    Demo(tmp_path, DemoSettings(bits=bits, chunks=1), print)._prepare(force)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_new_plan_forgets_what_came_of_the_old_one(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_command", lambda *words: demo._plan.touch())
    demo._plan.unlink()
    demo._tune(Path("model.gguf"))
    assert demo._plan.exists()
    assert not any(path.exists() for path in (demo._model, demo._rows, demo._chart))


@pytest.mark.parametrize("left_out", [None, "kind"])
def test_rows_of_an_earlier_version_are_judged_anew(
    left_out: str | None, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = asdict(Row("auto", 6.0, 6.1, 100, 0.1, 0.1, 0.2, 99.0, 10.0, 1.0, 5.0, 0.01))
    before = json.dumps([{name: value for name, value in row.items() if name != left_out}])
    demo._rows.write_text(before)
    asked = []
    monkeypatch.setattr(demo, "_command", lambda *words, **_: asked.append(words[0]) or json.dumps([row]))
    demo._evaluate()
    assert asked == (["eval"] if left_out else [])
    assert json.loads(demo._rows.read_text()) == [row]


def test_a_difference_is_an_error_that_names_the_layer(demo: Demo) -> None:
    pairs = {0: Pair("q8_0", "q4_0"), 1: Pair("f16", "f16")}
    demo._compare({"the file": pairs, "the log": dict(pairs)})
    with pytest.raises(KvtunerError, match="layer 1: the file says f16/f16, the server q8_0/f16"):
        demo._compare({"the file": pairs, "the log": pairs, "the server": {**pairs, 1: Pair("q8_0", "f16")}})
    with pytest.raises(KvtunerError, match="layer 2: the file says None, the log q4_0/q4_0"):
        demo._compare({"the file": pairs, "the log": {**pairs, 2: Pair("q4_0", "q4_0")}})


def test_a_command_that_fails_ends_the_demo(demo: Demo, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KvtunerError, match="'inspect' ended with status"):
        demo._command("inspect", "/nowhere/model.gguf")
    assert capfd.readouterr().err.strip()


def test_layers_in_short() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    lines = pair_lines({2: Pair("f16", "f16"), 0: Pair("q8_0", "q4_0"), 1: Pair("q8_0", "q4_0")})
    assert lines == ["q8_0/q4_0      layers 0-1", "f16/f16        layers 2"]
