"""At every moment of a change in place llama.cpp loads the file, with the old plan or the new one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.native.test_runtime import tool
from tests.tiny import write_tiny

pytestmark = pytest.mark.native

OLD, NEW = (Plan(tuple(map(Pair.parse, names))) for names in (("q8_0/q4_0", "f16"), ("q4_0", "q8_0/f16")))


def loaded(path: Path) -> list[tuple[str, str]]:
    llama = patched_llama_cpp().Llama(str(path), n_ctx=32, kv_config="auto", verbose=False)
    try:
        return list(llama.kv_cache_types)
    finally:
        llama.close()


def types_of(plan: Plan) -> list[tuple[str, str]]:
    return [(pair.k, pair.v) for pair in plan.pairs]


def moments(path: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The file before, in the middle of and after each write of ``work``."""
    found, whole = [path.read_bytes()], os.pwrite

    def pwrite(fd: int, data: bytes, start: int) -> int:
        if start != 16:  # one within a sector, which has no middle
            whole(fd, data[: len(data) // 2], start)
            found.append(path.read_bytes())
        n = whole(fd, data, start)
        found.append(path.read_bytes())
        return n

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        work()
    return found


def test_the_library_loads_the_old_plan_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = write_tiny(tmp_path / "m.gguf", "llama"), tmp_path / "state.gguf"
    annotate(path, OLD, path)
    for old, new in ((OLD, NEW), (NEW, OLD)):
        states = moments(path, lambda new=new: annotate(path, new, path), monkeypatch)
        seen = []
        for raw in states:
            state.write_bytes(raw)
            seen.append(loaded(state))
        assert seen == [types_of(plan) for plan in (old, old, old, new)]


def test_the_tools_of_llama_cpp_keep_a_plan_in_either_half(tmp_path: Path) -> None:
    path, copy = write_tiny(tmp_path / "m.gguf", "llama"), tmp_path / "copy.gguf"
    annotate(path, OLD, path)
    annotate(path, NEW, path)
    done: subprocess.CompletedProcess[str] = tool("llama-quantize", "--allow-requantize", path, copy, "F32")
    assert done.returncode == 0, done.stderr[-1000:]
    assert loaded(copy) == types_of(NEW)
    annotate(copy, OLD, copy)
    plan = plan_of(read_model(copy))
    assert plan is not None
    assert plan.pairs == OLD.pairs
