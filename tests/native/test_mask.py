"""Masks of sequences that are alone in their stream, against the definition cell by cell."""

from __future__ import annotations

import subprocess

import pytest
from build_folders import installed_folder

pytestmark = pytest.mark.native


def test_masks_of_random_histories() -> None:
    done = subprocess.run([installed_folder() / "kvtuner-test-mask"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split(", ")[-1]) == (0, "0 failures\n"), done.stdout
