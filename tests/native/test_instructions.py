"""Attention over a plan's caches in an AVX2 build takes no more instructions than it should, counted exactly."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from build_folders import build_folder

pytestmark = pytest.mark.native

PROGRAM = build_folder("cpu", "haswell") / "kvtuner-count-instructions"


def has_avx2() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and {"avx2", "fma"} <= set(info.read_text().split())


@pytest.mark.skipif(platform.machine() != "x86_64" or not has_avx2(), reason="counts on an x86 processor with AVX2")
def test_decode_and_prefill_keep_to_their_share_of_upstreams_over_f16() -> None:
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is not built: make {PROGRAM.relative_to(PROGRAM.parents[2])}")
    done = subprocess.run([PROGRAM], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[1:]] == ["decode", "prefill"]
