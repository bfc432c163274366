"""Tables in terminals of several widths, and in files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pseudoterminal import run_in_terminal

from kvtuner_gguf.report.table import Column, print_table

ROOT = Path(__file__).parents[2]
# two rows of an evaluation, a front and keys; numbers that are looked for in what is printed
SCRIPT = """
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.plan.front import Front, Point
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.fronts import print_front
from kvtuner_gguf.report.rows import print_rows
from kvtuner_gguf.report.spreads import print_keys

names = ["a plan [of mine]", "iq4_nl/q3_nl centered"]
print_rows([Row(n, 6.25, 6.375, 1440, 0.01234, 0.00567, 0.8901, 95.67, 13.1234, 1.01234, 4.56, 0.00089) for n in names],
           "the title of a table that has more words than a narrow terminal has room for [in one line]")
shape = ModelShape("llama", (2, 2), 32, 32)
pairs = (Pair.parse("q8_0"),) * 2
print_front(Front(shape, "kld", (Point(pairs, 0.04321, 0.05432),)), Plan(pairs))
print_keys(KeySpread((12.34,), (2.34,), (1.234,), (0.345,)))
"""
# of the rows: always, and where there is room
ESSENTIAL = ("6.375", "0.01234", "0.00089", "0.04321", "12.34", "2.34")
OTHERS = {
    "95.67": "same top %",
    "1.01234": "PPL ratio",
    "4.56": "MiB",
    "1440": "bytes/token",
    "6.25": "bits/value",
    "0.00567": "median",
    "0.8901": "99.9 %",
    "13.1234": "PPL",
}


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **extra}


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_nothing_is_cut_in_a_terminal(columns: int) -> None:
    done = run_in_terminal([sys.executable, "-c", SCRIPT], columns, environment())
    assert done.exit_code == 0, done.raw
    text = "\n".join(done.lines)
    assert max(map(len, done.lines)) <= columns
    assert "…" not in text
    assert all(text.count(number) >= 1 for number in ESSENTIAL), text
    assert all(f"{name}" in text for name in ("a plan [of mine]", "iq4_nl/q3_nl centered")), text
    assert "[in one line]" in " ".join(text.split())
    named = [" ".join(part.split()) for part in text.split("a wider terminal also has: ")[1:]]
    assert all(number in text or header in named[0] for number, header in OTHERS.items()), text


def test_a_wide_terminal_shows_more_and_a_narrow_one_what_matters() -> None:
    def shown(columns: int) -> set[str]:
        lines = run_in_terminal([sys.executable, "-c", SCRIPT], columns, environment()).lines
        return {number for number in OTHERS if number in "\n".join(lines)}

    assert shown(160) == set(OTHERS)  # and so it is in the record of a narrow one
    assert shown(40) == set(OTHERS)
    assert {"95.67"} <= shown(80) < shown(120)


@pytest.mark.parametrize("extra", [{"COLUMNS": "40"}, {"FORCE_COLOR": "1"}])
def test_a_file_has_all_columns_of_a_row_in_one_line(extra: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment(**extra), check=True
    )
    assert ("\x1b" in done.stdout) == ("FORCE_COLOR" in extra)
    assert "a wider terminal" not in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "[of mine]" in line]
    assert all(number in line for number in (*OTHERS, "6.375", "0.01234", "0.00089"))


def test_a_name_with_escapes_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("name", str), Column[str]("length", lambda name: str(len(name)))]
    print_table(columns, ["a\x1b[2Jb"], "title\x1b[2J")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "title\\x1b[2J\n" in shown
    assert "│ a\\x1b[2Jb │" in shown


def test_without_colors_there_are_no_escapes() -> None:
    command = [sys.executable, "-c", SCRIPT]
    assert "\x1b" in run_in_terminal(command, 80, environment()).raw
    plain = run_in_terminal(command, 80, environment(NO_COLOR="1"))
    assert "\x1b" not in plain.raw
    assert "0.01234" in plain.raw
