"""Shell completion, as a shell asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvtuner_gguf.cli.completion import PROGRAM, SHELLS, VARIABLE

ROOT = Path(__file__).parents[2]
RUN = f"from kvtuner_gguf.cli import main; main(prog_name={PROGRAM!r})"


def run(*words: str, **variables: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", RUN, *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


def completed(line: str) -> list[str]:
    """What bash is offered for the last word of ``line``."""
    found = run(**{VARIABLE: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)})
    return [entry.partition(",")[2] for entry in found.splitlines()]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_asks_the_program(shell: str) -> None:
    script = run("completion", shell)
    assert f"{VARIABLE}={shell}_complete" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kvtuner-gguf an", ["annotate"]),
        ("kvtuner-gguf tune --obj", ["--objective"]),
        ("kvtuner-gguf eval --evaluator t", ["torch"]),
        ("kvtuner-gguf eval --uniform q8", ["q8_0"]),
        ("kvtuner-gguf eval --uniform q8_0/iq", ["q8_0/iq4_nl"]),
        ("kvtuner-gguf tune --candidates q8_0,q3", ["q8_0,q3_nl"]),
        ("kvtuner-gguf tune --fix 0-3=bf", ["0-3=bf16"]),
        ("kvtuner-gguf tune none/mod", ["none/mod"]),
    ],
)
def test_words_are_completed(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_completion_writes_nothing(tmp_path: Path) -> None:
    assert completed(f"kvtuner-gguf tune {tmp_path}/none.gguf -o {tmp_path}/x --eng") == ["--engine"]
    assert not list(tmp_path.iterdir())
