"""The benchmark of attention fills deep caches by states that it writes itself: in the format of the base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvtuner_gguf.files.assets import fetch_model

TOOL = Path(__file__).parents[2] / "tools" / "bench_attention.py"


@pytest.mark.native
@pytest.mark.model
def test_a_deep_cache_is_filled() -> None:
    short = ("--depth", "1000", "--threads", "2", "--cache", "q3_nl/q2_nl", "--prefill", "8", "--decode", "2")
    command = [sys.executable, TOOL, fetch_model("smollm2-135m"), *short, "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [("1000", "f16,"), ("1000", "q3_nl/q2_nl")]


@pytest.mark.native
@pytest.mark.model
def test_exact_ends_are_compared_with_none() -> None:
    short = ("--depth", "1000", "--threads", "2", "--cache", "q4_0", "--prefill", "8", "--decode", "2", "--rounds", "1")
    command = [sys.executable, TOOL, fetch_model("smollm2-135m"), *short, "--ends", "4+32:q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    with_ends = done.stdout.splitlines()[3]
    assert with_ends.split()[1:3] == ["q4_0", "4+32:q8_0"]
    assert with_ends.count("of without") == 2
