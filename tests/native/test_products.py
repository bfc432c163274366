"""Products whose rows are quantized already: those of the same rows, and those of what attention made."""

from __future__ import annotations

import subprocess

import pytest
from build_folders import installed_folder

pytestmark = pytest.mark.native


def test_which_products_find_their_rows_quantized() -> None:
    done = subprocess.run([installed_folder() / "kvtuner-test-products"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout
