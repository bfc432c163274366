"""Every variant of the CPU back end that this machine runs, in the build of all of them: `make test-variants`."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from build_folders import installed_cpu, installed_folder

from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

pytestmark = [pytest.mark.native, pytest.mark.variants]

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
VARIANTS = sorted(path.name for path in LIBRARIES.glob("libggml-cpu-*.so"))
SCRIPT = Path(__file__).with_name("variant_logits.py")
N_LAYER, N_TOKENS = 30, 300
NAMES = ("q8_0/q4_0", "q4_0/q2_nl", "f16/q8_0", "q3_nl/q5_1", "iq4_nl/q8_0", "q2_nl/bf16")
KLD_SPREAD = (
    0.4  # of the KLD from f16: 0.16 to 0.20 seen, since roundings tip other roundings; wrong kernels multiply it
)


def score(variant: str) -> int:
    return ctypes.CDLL(str(LIBRARIES / variant)).ggml_backend_score()


def needs(variant: str) -> None:
    if score(variant) == 0:
        pytest.skip("this processor does not run it")


def test_the_build_of_all_variants_is_installed() -> None:
    assert installed_cpu() == "all", "make build CPU=all"
    assert len(VARIANTS) > 1


@pytest.mark.parametrize("program", ["decode", "lowbit", "attention", "writes"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_of_a_variant(variant: str, program: str) -> None:
    needs(variant)
    command = [installed_folder() / f"kvtuner-test-{program}", *(["1"] if program == "attention" else [])]
    library = installed_folder() / "bin" / variant
    env = os.environ | {"GGML_BACKEND_PATH": str(library)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-1000:]
    assert str(library) in done.stdout.splitlines()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan(tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER))).save(path)
    return path


def logits(plan: Path, out: Path, variant: str | None = None, **settings: object) -> tuple[np.ndarray, list[Path]]:
    """Those over f16 and over the plan's cache, and the CPU back ends that the process has open at its end."""
    command = [sys.executable, SCRIPT, fetch_model("smollm2-135m"), plan, str(N_TOKENS), out]
    command += [LIBRARIES / variant] if variant else []
    text = fetch_text("encyclopedia").read_text()[:4000]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out), [Path(line) for line in done.stdout.splitlines()]


def mean_kld(of_both: np.ndarray) -> float:
    """Of the plan from f16."""
    p, q = (z - np.logaddexp.reduce(z.astype(np.float64), axis=1, keepdims=True) for z in of_both)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.fixture(scope="module")
def best(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, list[Path]]:
    return logits(plan, tmp_path_factory.mktemp("best") / "logits.npy")


def test_the_best_variant_is_taken(best: tuple[np.ndarray, list[Path]]) -> None:
    assert max(VARIANTS, key=score) in [path.name for path in best[1]]


@pytest.mark.model
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_means_the_same_with_each_variant(
    variant: str, plan: Path, best: tuple[np.ndarray, list[Path]], tmp_path: Path
) -> None:
    needs(variant)
    found, _ = logits(plan, tmp_path / "logits.npy", variant)
    assert mean_kld(found) == pytest.approx(mean_kld(best[0]), rel=KLD_SPREAD)
    env = os.environ | {"KVTUNER_ATTENTION": "none"}
    upstream, _ = logits(plan, tmp_path / "upstream.npy", variant, env=env)
    assert mean_kld(found) == pytest.approx(mean_kld(upstream), rel=KLD_SPREAD)
    assert np.array_equal(found[0], upstream[0])
    assert not np.array_equal(found[1], upstream[1])  # attention of our own has run


@pytest.mark.model
def test_back_ends_of_another_build_in_the_working_folder_are_not_loaded(plan: Path, tmp_path: Path) -> None:
    """As where Python runs beside an unpacked release of llama.cpp."""
    for variant in VARIANTS:
        shutil.copy(LIBRARIES / variant, tmp_path)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    _, opened = logits(plan, tmp_path / "logits.npy", cwd=tmp_path, env=env)
    assert {path.parent for path in opened} == {LIBRARIES}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_shares_a_symbol_of_ours_with_the_others(variant: str) -> None:
    """Symbols that the loader makes one for the process would give one variant the code or data of another."""
    listed = subprocess.run(["nm", "-DC", LIBRARIES / variant], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if " u " in line and "kvtuner" in line]
