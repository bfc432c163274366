"""Layers of a plan on a device of another process: the same types, sizes and answers as here."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvtuner_gguf.assets import fetch_model
from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.plan import Plan
from kvtuner_gguf.runtime.cachereport import CacheReport
from kvtuner_gguf.runtime.server import find_tool

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30
PLAN = Plan(tuple(Pair.parse(("q8_0/q4_0", "f16/f16", "q5_1/q4_1")[il % 3]) for il in range(N_LAYER)))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [find_tool("ggml-rpc-server"), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_listening(port)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def _wait_until_listening(port: int) -> None:
    for _ in range(200):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("ggml-rpc-server does not listen")


def complete(plan: Path, *args: str) -> tuple[str, CacheReport]:
    fixed = ["--kv-config", plan, "-p", "The capital of France is", "-n", "12", "--temp", "0", "-no-cnv", "-c", "256"]
    command = [
        find_tool("llama-completion"),
        "-m",
        fetch_model("smollm2-135m"),
        "--no-warmup",
        "-t",
        "1",
        *fixed,
        *args,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, CacheReport.from_log(done.stderr)


@pytest.mark.parametrize("n_gpu_layers", ["99", "12"])
def test_a_plan_over_rpc_is_the_plan_here(n_gpu_layers: str, endpoint: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    text, report = complete(tmp_path / "plan.json")
    far_text, far_report = complete(tmp_path / "plan.json", "--rpc", endpoint, "-ngl", n_gpu_layers)
    assert report == far_report
    assert report.pairs == dict(enumerate(PLAN.pairs))
    assert "Paris" in text
    assert far_text == text


def test_the_cache_stays_here_without_offload(endpoint: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    text, report = complete(tmp_path / "plan.json")
    far_text, far_report = complete(tmp_path / "plan.json", "--rpc", endpoint, "-ngl", "99", "--no-kv-offload")
    assert report == far_report
    assert far_text == text
