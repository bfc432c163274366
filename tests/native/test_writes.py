"""Which writes of keys and values one kernel may do, and that it stores what the steps store."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from build_folders import build_folder, installed_folder

from kvtuner_gguf.engine.llama.native import open_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests import tiny
from tests.native.test_center import logits, relative_error

pytestmark = pytest.mark.native


def test_writes_are_found_and_store_what_their_steps_store() -> None:
    done = subprocess.run([installed_folder() / "kvtuner-test-writes"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "CPU: 9306 writes equal in every byte\n0 failures" in done.stdout


@pytest.mark.gpu
def test_a_write_in_one_launch_stores_what_the_steps_store() -> None:
    """Rows in q2_nl and q3_nl are also held to the reference, bit for bit."""
    program = build_folder("cuda") / "kvtuner-test-writes"
    done = subprocess.run([program, "CUDA0"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "9306 writes equal in every byte" in done.stdout


def test_keys_that_are_normed_last_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The back end passes over the weights of a norm, which lie where a scale would with one head of keys."""
    monkeypatch.setattr(tiny, "N_HEAD_KV", 1)
    rng = np.random.default_rng(3)
    norms = {f"blk.{il}.attn_{side}_norm.weight": rng.uniform(0.5, 2, 64) for il in range(2) for side in "qk"}
    tokens = rng.integers(0, 250, 128).astype(np.int32)
    plans = [Plan.uniform(Pair.parse(name), 2) for name in ("f16", "q8_0")]
    path = tiny.write_tiny(tmp_path / "m.gguf", "hunyuan-dense", change=norms)
    with open_model(path, 2) as model, model.context(plans[0], 512, 128) as a, model.context(plans[1], 512, 128) as b:
        error = relative_error(logits(b, tokens), logits(a, tokens))
    assert 0 < error < 0.02
