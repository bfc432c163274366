"""Which writes of keys and values one kernel may do, and that it stores what the steps store."""

from __future__ import annotations

import subprocess

import pytest
from build_folders import build_folder, installed_folder

pytestmark = pytest.mark.native


def test_writes_are_found_and_store_what_their_steps_store() -> None:
    done = subprocess.run([installed_folder() / "kvtuner-test-writes"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "CPU: 9162 writes equal in every byte\n0 failures" in done.stdout


@pytest.mark.gpu
def test_a_write_in_one_launch_stores_what_the_steps_store() -> None:
    program = build_folder("cuda") / "kvtuner-test-writes"
    done = subprocess.run([program, "CUDA0"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "7614 writes equal in every byte" in done.stdout
