"""What a command says of its stages, in a file and on a terminal."""

from __future__ import annotations

import re
import sys
import time

import pytest
from pseudoterminal import run_in_terminal

from kvtuner_gguf.report import stages
from kvtuner_gguf.report.numbers import duration
from kvtuner_gguf.report.stages import Level, byte_progress, others_talk, step_progress, talk
from tests.report.test_table import environment

BARS = """
import time
from kvtuner_gguf.report.stages import Level, step_progress, talk
with talk(Level.NORMAL), step_progress("a [b]title of length"), step_progress("a stage inside") as show:
    for i in range(10):
        show(i, 10)
        time.sleep(0.05)
"""
TITLES = """
import time
from kvtuner_gguf.report.stages import Level, step_progress, talk
with talk(Level.NORMAL):
    for title, seconds in (("the first of two long titles", 0.5), ("the second", 0.1)):
        with step_progress(title):
            time.sleep(seconds)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SILENCE", 0.2)
    monkeypatch.setattr(stages, "TICK", 0.05)


def test_a_stage_is_a_line_with_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with talk(Level.NORMAL):
        with step_progress("look at layers") as show:
            show(1, 2)
        with byte_progress("copy"):
            time.sleep(0.2)
    said = capsys.readouterr()
    assert said.out == ""
    first, second, last = said.err.splitlines()
    assert re.fullmatch(r"look at layers: 0\.\d s", first)
    assert re.fullmatch(r"copy: 0\.[2-9] s", second)
    assert re.fullmatch(r"0\.[2-9] s in all, most of them: copy 0\.[2-9] s", last)


def test_the_last_line_is_broken_between_words() -> None:
    lines = run_in_terminal([sys.executable, "-c", TITLES], 40, environment()).lines
    assert "most of them: the first of two long titles" in " ".join(line.strip() for line in lines)


@pytest.mark.usefixtures("impatient")
def test_silence_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    with talk(Level.NORMAL):
        time.sleep(0.4)
        with byte_progress("copy") as show:
            show(1_500_000, 4_000_000)
            time.sleep(0.7)
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"at work: 0\.\d s so far", said[0])
    assert len([line for line in said if re.fullmatch(r"copy: 1\.5 of 4\.0 MB, 0\.\d s so far", line)]) >= 2


@pytest.mark.usefixtures("impatient")
def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with talk(Level.QUIET), step_progress("a") as show:
        show(1, 2)
        time.sleep(0.5)
    with talk(Level.NORMAL), others_talk():
        time.sleep(0.5)
    assert capsys.readouterr().err == ""


def test_verbose_tells_when_a_stage_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with talk(Level.VERBOSE), step_progress("outer"), step_progress("inner"):
        pass
    said = [re.sub(r"\d+\.\d", "N", line) for line in capsys.readouterr().err.splitlines()]
    assert said[:4] == ["outer ...", "inner ...", "inner: N s", "outer: N s"]


def test_a_stage_that_fails_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), talk(Level.NORMAL), step_progress("a"), step_progress("b"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_bars_fit_and_leave_lines_behind(columns: int) -> None:
    done = run_in_terminal([sys.executable, "-c", BARS], columns, environment())
    assert done.exit_code == 0, done.raw
    assert re.search(r"\d of 10", done.raw)
    assert "…" not in done.raw
    assert [line.split(":")[0] for line in done.lines if line][:2] == ["a stage inside", "a [b]title of length"]
    assert done.raw.startswith("\x1b[?25la [b]title of length"), "beside its bar"


@pytest.mark.parametrize("extra", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_plain_terminals_get_plain_lines(extra: dict[str, str]) -> None:
    done = run_in_terminal([sys.executable, "-c", BARS], 80, environment(**extra))
    assert re.search(r"a \[b\]title of length: 0\.\d s", done.raw)
    assert not re.search(r"\x1b\[[0-9;]*m", done.raw)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (59.96, "1 min 0 s"), (229.6, "3 min 50 s"), (3601, "60 min 1 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
