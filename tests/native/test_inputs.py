"""Inputs on their way to a device: the scheduler that hands them over, and CUDA's kernel that brings them."""

from __future__ import annotations

import subprocess

import pytest
from build_folders import installed_folder

pytestmark = pytest.mark.native


def run(name: str) -> str:
    done = subprocess.run([installed_folder() / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_each_round_reads_what_its_inputs_were() -> None:
    assert run("kvtuner-test-inputs") == "0 failures\n"


def test_cuda_brings_each_byte_to_its_place() -> None:
    assert run("kvtuner-test-cuda-inputs") == "36 sets of inputs, 0 failures\n"
