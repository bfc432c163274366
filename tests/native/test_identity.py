"""Against the unpatched library: without a plan nothing changes, and an annotated file runs there as before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from build_folders import installed_cpu, stock_folder

from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

pytestmark = [pytest.mark.native, pytest.mark.model]

ROOT = Path(__file__).resolve().parents[2]
STOCK_BINDINGS = ROOT / "build" / "stock-src"
STOCK_LIBRARY = stock_folder(installed_cpu()) / "bin"
SCRIPT = Path(__file__).with_name("greedy_or_logits.py")
N_LAYER = 30


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch_model("smollm2-135m")


@pytest.fixture(scope="module")
def text() -> str:
    return fetch_text("encyclopedia").read_text()[5000:9000]


def run(library: str, model: Path, text: str, out: Path, *args: str) -> np.ndarray:
    env = dict(os.environ)
    if library == "stock":
        if not STOCK_LIBRARY.is_dir():
            pytest.fail("the unpatched library is not built: make stock")
        env |= {"PYTHONPATH": str(STOCK_BINDINGS), "LLAMA_CPP_LIB_PATH": str(STOCK_LIBRARY)}
    if library == "patched, upstream's attention":
        env["KVTUNER_ATTENTION"] = "none"
    subprocess.run([sys.executable, SCRIPT, model, out, "--text", text, *args], env=env, check=True, timeout=300)
    return np.load(out)


def type_arguments(pair: Pair) -> list[str]:
    k, v = (str(cache_type(name).ggml_type) for name in (pair.k, pair.v))
    return ["--type-k", k, "--type-v", v]


@pytest.mark.parametrize("name", ["f16/f16", "q8_0/q8_0", "q4_0/q4_0"])
def test_uniform_logits_equal_the_unpatched_build(name: str, model: Path, text: str, tmp_path: Path) -> None:
    arguments = type_arguments(Pair.parse(name))
    patched = run("patched", model, text, tmp_path / "a.npy", *arguments)
    stock = run("stock", model, text, tmp_path / "b.npy", *arguments)
    assert patched.size > 200 * 40_000
    assert np.array_equal(patched.view(np.uint32), stock.view(np.uint32))


@pytest.mark.parametrize("name", ["q8_0/q8_0", "q8_0/q4_0", "q5_1/iq4_nl", "bf16/q5_0", "q4_1/f16"])
def test_a_uniform_plan_equals_the_uniform_types(name: str, model: Path, text: str, tmp_path: Path) -> None:
    pair = Pair.parse(name)
    plan = tmp_path / "plan.json"
    Plan.uniform(pair, N_LAYER).save(plan)
    by_types = run("patched", model, text, tmp_path / "a.npy", *type_arguments(pair))
    by_plan = run("patched, upstream's attention", model, text, tmp_path / "b.npy", "--kv-config", str(plan))
    f16 = run("patched", model, text, tmp_path / "c.npy")
    assert np.array_equal(by_types.view(np.uint32), by_plan.view(np.uint32))
    assert not np.array_equal(by_types, f16)


def test_an_annotated_file_runs_in_the_unpatched_build_as_before(model: Path, text: str, tmp_path: Path) -> None:
    annotated = tmp_path / "annotated.gguf"
    pairs = [Pair.parse(name) for name in ("q8_0/q4_0", "f16/f16", "q5_1/q4_1")]
    annotate(model, Plan(tuple(pairs[il % 3] for il in range(N_LAYER))), annotated)
    before = run("stock", model, text, tmp_path / "a.npy", "--greedy", "128")
    after = run("stock", annotated, text, tmp_path / "b.npy", "--greedy", "128")
    assert len(before) == 128
    assert np.array_equal(before, after)
