"""The warning about pairs for which a back end has no fast kernel, on made-up devices."""

from __future__ import annotations

import subprocess

import pytest
from build_folders import installed_folder

pytestmark = pytest.mark.native

PROGRAM = installed_folder() / "kvtuner-test-backend"


def test_slow_layers_are_named_with_the_remedy() -> None:
    done = subprocess.run([PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0 failures\n")
