"""What fits a model to memory counts the cache of the plan, not that of f16."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.server.llama_server import find_tool

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER, N_CTX = 30, 8192
SHAPE = ModelShape("llama", (3,) * N_LAYER, 64, 64)
PLAN = Plan(tuple(Pair.parse(("q8_0/q4_0", "f16/f16", "q4_0")[il % 3]) for il in range(N_LAYER)))


def estimate(*args: object) -> int:
    """MiB of context memory on the host, as estimated without allocating anything."""
    command = [find_tool("llama-fit-params"), "-m", fetch_model("smollm2-135m"), "-c", str(N_CTX), "--fit-print", "on"]
    done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = re.findall(r"^Host (\d+) (\d+) (\d+) *$", done.stdout, re.MULTILINE)
    return int(line[1])


def test_the_estimate_follows_the_plan(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert estimate() == N_CTX * Plan.uniform(Pair.parse("f16"), N_LAYER).bytes_per_token(SHAPE) >> 20
    planned = N_CTX * PLAN.bytes_per_token(SHAPE) / 2**20
    assert estimate("--kv-config", tmp_path / "plan.json") == pytest.approx(planned, abs=1)
