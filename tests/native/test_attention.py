"""Attention over quantized caches on the CPU: upstream's operator tests, the same bits for any threads and batches."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from build_folders import installed_folder

from kvtuner_gguf.engine.llama.native import open_model
from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import find_tool

pytestmark = pytest.mark.native

N_LAYER = 30
NAMES = ("q8_0/q4_0", "q4_0/q2_nl", "f16/q8_0", "q3_nl/q5_1", "iq4_nl/q8_0", "q2_nl/bf16")


# of upstream's cases those with K != V, and the shorter ones: all of them take minutes
CASES = r"nh=2,nr23=\[4,1\],kv=512,nb=(1|35),|kv=113,nb=(1|3|32),"


def test_upstreams_cases_agree_with_its_reference() -> None:
    """All pairs, head sizes 40 to 576, masks, ALiBi, sinks, soft-capping: normalized error below 5e-4."""
    command = [find_tool("test-backend-ops"), "test", "-o", "FLASH_ATTN_EXT", "-b", "CPU", "-p", CASES]
    env = os.environ | {"KVTUNER_ATTENTION": "all"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, [line for line in done.stdout.splitlines() if "FAIL" in line][:10]
    passed, n_cases = re.search(r"(\d+)/(\d+) tests passed", done.stdout).groups()
    assert passed == n_cases
    assert int(n_cases) > 900


def test_every_pair_against_float64() -> None:
    """And the same bits for 1, 2, 3 and 5 threads, whose blocks and tiles differ."""
    test = installed_folder() / "kvtuner-test-attention"
    done = subprocess.run([test], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^2[0-9]{3} cases, worst normalized error \S+, 0 failures$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def logits() -> Callable[[int, int], np.ndarray]:
    plan = Plan(tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER)))
    text = fetch_text("encyclopedia").read_text()[:4000]

    def run(n_threads: int, n_together: int) -> np.ndarray:
        """The logits of 300 tokens, decoded so many at once."""
        with open_model(fetch_model("smollm2-135m"), n_threads) as model, model.context(plan, 512, 300) as context:
            tokens = np.array(model.tokenize(text)[:300], np.int32)
            parts = [tokens[i : i + n_together] for i in range(0, len(tokens), n_together)]
            return np.concatenate([context.decode(x, i * n_together, True).copy() for i, x in enumerate(parts)])

    return run


@pytest.mark.model
@pytest.mark.parametrize(("n_threads", "n_together"), [(2, 300), (3, 300), (1, 1), (3, 1), (2, 7), (3, 40)])
def test_neither_threads_nor_batches_change_a_bit(
    n_threads: int, n_together: int, logits: Callable[[int, int], np.ndarray]
) -> None:
    assert np.array_equal(logits(n_threads, n_together), logits(1, 300))
