"""The values of each cache type, as the built library reads them, against the one definition of its blocks."""

from __future__ import annotations

import subprocess

import pytest
from build_folders import installed_folder

pytestmark = pytest.mark.native


def test_rows_and_columns_of_every_type() -> None:
    done = subprocess.run([installed_folder() / "kvtuner-test-decode"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 failures"), done.stdout
