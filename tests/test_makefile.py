"""The scripts that the Makefile runs by themselves find what they import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = re.findall(
    r"(?:PYTHONPATH=(\S+) )?\$\(BIN\)/python ((?:tests|tools)/\S+\.py)", (ROOT / "Makefile").read_text()
)


@pytest.mark.parametrize(("path", "script"), SCRIPTS, ids=[script for _, script in SCRIPTS])
def test_a_script_of_the_makefile_starts(path: str, script: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": path} if path else {}
    code = f"import sys, runpy; sys.path[0] = {str(Path(script).parent)!r}; runpy.run_path({script!r}, run_name='it')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
