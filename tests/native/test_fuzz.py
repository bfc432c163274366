"""The plan readers of the library on hostile input; `make fuzz` does the same under sanitizers, for longer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from build_folders import installed_folder

from tests.native.corpus import write_corpus

pytestmark = pytest.mark.native

FUZZ = installed_folder() / "kvtuner-fuzz"


def test_hostile_plans_give_a_plan_or_one_line(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    done = subprocess.run([FUZZ, "3", "1", corpus], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    runs, words = done.stdout.split(maxsplit=1)
    assert words == "runs, no finding\n"
    assert int(runs) > 1000
