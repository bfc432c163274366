"""Saved state: it loads into a cache with the same plan, exactly, and into no other."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Context, Model
from kvtuner_gguf.evaluation.divergence import Tally, score
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import find_tool
from tests.native.test_identity import STOCK_BINDINGS, STOCK_LIBRARY

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30
TOKENS = np.arange(1000, 1096, dtype=np.int32)
NEXT = np.array([42, 43, 44], np.int32)
ROUNDING_KLD = 0.05


def mixed(*names: str) -> Plan:
    return Plan(tuple(Pair.parse(names[il % len(names)]) for il in range(N_LAYER)))


CACHES: dict[str, Pair | Plan] = {
    "uniform f16": Pair.parse("f16"),
    "uniform q8_0": Pair.parse("q8_0"),
    "mixed": mixed("f16", "q8_0/q4_0", "q5_1"),
    "mixed otherwise": mixed("q8_0/q4_0", "f16", "q5_1"),
}
MATRIX = [(written, read) for written in CACHES for read in CACHES]


@pytest.fixture(scope="module")
def contexts(model: Model) -> Iterator[dict[str, Context]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(model.context(cache, 512, 128)) for name, cache in CACHES.items()}


@pytest.fixture(scope="module")
def states(contexts: dict[str, Context]) -> dict[str, tuple[bytes, bytes, np.ndarray]]:
    """Of each cache: the whole state, the state of its sequence, and the logits that follow."""
    return {name: make_state(context) for name, context in contexts.items()}


def make_state(context: Context) -> tuple[bytes, bytes, np.ndarray]:
    context.clear()
    context.decode(TOKENS, 0, want_logits=False)
    return save(context), save_sequence(context), follow(context)


def follow(context: Context) -> np.ndarray:
    return context.decode(NEXT, len(TOKENS), want_logits=True).copy()


def mean_kld(logits: np.ndarray, expected: np.ndarray) -> float:
    """In nats per token."""
    tallies = [Tally(), Tally()]
    score(expected, [logits], np.zeros(len(logits), int), tallies)
    return tallies[1].result().kld_mean


def save(context: Context) -> bytes:
    import llama_cpp

    raw = (ctypes.c_uint8 * llama_cpp.llama_state_get_size(context._pointer))()
    return bytes(raw[: llama_cpp.llama_state_get_data(context._pointer, raw, len(raw))])


def save_sequence(context: Context) -> bytes:
    import llama_cpp

    raw = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size(context._pointer, 0))()
    return bytes(raw[: llama_cpp.llama_state_seq_get_data(context._pointer, raw, len(raw), 0)])


def cells(sequence: bytes) -> bytes:
    """Positions, keys and values: what follows the plan, if there is one, and the number of streams."""
    return sequence[sequence.index(struct.pack("<II", 1, len(TOKENS))) :]


def load(context: Context, state: bytes) -> int:
    import llama_cpp

    raw = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    return llama_cpp.llama_state_set_data(context._pointer, raw, len(raw))


def load_sequence(context: Context, state: bytes) -> int:
    import llama_cpp

    raw = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    return llama_cpp.llama_state_seq_set_data(context._pointer, raw, len(raw), 0)


@pytest.mark.parametrize(("written", "read"), MATRIX)
@pytest.mark.parametrize("part", ["whole", "sequence"])
def test_the_diagonal_loads_exactly_and_the_rest_not_at_all(
    written: str, read: str, part: str, model: Model, contexts: dict[str, Context], states: dict
) -> None:
    whole, sequence, expected = states[written]
    context = contexts[read]
    context.clear()
    model._log.reason()  # errors of earlier cases
    loaded = load(context, whole) if part == "whole" else load_sequence(context, sequence)
    if written == read:
        assert loaded == len(whole if part == "whole" else sequence)
        assert np.array_equal(follow(context), expected)
    else:
        assert loaded == 0
        if "mixed" in written + read:
            assert "plan" in model._log.reason()


def test_a_refusal_names_both_plans(model: Model, contexts: dict[str, Context], states: dict) -> None:
    assert load(contexts["mixed"], states["mixed otherwise"][0]) == 0
    reason = model._log.reason()
    assert "0:q8_0+rot/q4_0+rot 1:f16+rot/f16+rot" in reason
    assert "0:f16+rot/f16+rot 1:q8_0+rot/q4_0+rot" in reason
    assert load(contexts["mixed"], states["uniform f16"][0]) == 0
    assert "plan [none]" in model._log.reason()


def test_a_refusal_is_not_told_of_a_later_failure(contexts: dict[str, Context], states: dict) -> None:
    from llama_cpp import kvtuner

    for reader, part in ((load, 0), (load_sequence, 1)):
        assert reader(contexts["mixed"], states["mixed otherwise"][part]) == 0
        assert reader(contexts["mixed"], b"damaged!") == 0
        failure = kvtuner.state_failure("it failed")
        assert not isinstance(failure, kvtuner.StateRefused)
        assert str(failure).startswith("it failed: ")
        assert "plan" not in str(failure)
        assert reader(contexts["mixed"], states["mixed otherwise"][part]) == 0
        again = kvtuner.state_failure("it failed")
        assert isinstance(again, kvtuner.StateRefused)
        assert "was saved with the KV cache plan" in str(again)


def test_a_refused_state_leaves_the_cache_as_it_was(contexts: dict[str, Context], states: dict) -> None:
    context = contexts["mixed"]
    context.clear()
    context.decode(TOKENS, 0, want_logits=False)
    assert load(context, states["mixed otherwise"][0]) == 0
    assert np.array_equal(follow(context), states["mixed"][2])


@pytest.mark.parametrize("names", [("uniform q8_0", "q8_0"), ("uniform f16", "f16")])
def test_a_uniform_plan_and_uniform_types_read_each_others_states(
    names: tuple[str, str], model: Model, contexts: dict[str, Context], states: dict
) -> None:
    """Byte for byte. Attention over the caches of a plan is ours, so that what follows agrees to rounding.

    Rounding alone costs this model a KLD of about 0.003, since activations are rounded to 8 bits; another text's state
    costs 0.9.
    """
    by_types, plan = contexts[names[0]], Plan.uniform(Pair.parse(names[1]), N_LAYER)
    with model.context(plan, 512, 128) as by_plan:
        of_plan, of_types = make_state(by_plan), states[names[0]]
        for context, (whole, sequence, expected) in ((by_types, of_plan), (by_plan, of_types)):
            for part, reader in ((whole, load), (sequence, load_sequence)):
                context.clear()
                assert reader(context, part) == len(part)
                assert cells(save_sequence(context)) == cells(sequence)
                following = follow(context)
                assert mean_kld(following, expected) < ROUNDING_KLD
                assert np.array_equal(following.argmax(-1), expected.argmax(-1))
            context.clear()
            context.decode(TOKENS[::-1].copy(), 0, want_logits=False)
            assert mean_kld(follow(context), expected) > 10 * ROUNDING_KLD


@pytest.mark.parametrize("cut", [8, 40, 200, 5000])
def test_a_damaged_state_is_refused(cut: int, contexts: dict[str, Context], states: dict) -> None:
    context = contexts["mixed"]
    assert load(context, states["mixed"][0][:-cut]) == 0
    damaged = bytearray(states["mixed"][0])
    damaged[cut] ^= 0xFF
    context.clear()
    loaded = load(context, bytes(damaged))
    assert loaded in (0, len(damaged))


def test_without_a_plan_states_are_those_of_the_unpatched_build(states: dict, tmp_path: Path) -> None:
    """Byte for byte, so either build loads the other's files."""
    out = tmp_path / "state"
    env = {**os.environ, "PYTHONPATH": str(STOCK_BINDINGS), "LLAMA_CPP_LIB_PATH": str(STOCK_LIBRARY)}
    script = Path(__file__).with_name("greedy_or_logits.py")
    types = ["--type-k", "8", "--type-v", "8"]
    command = [sys.executable, script, fetch_model("smollm2-135m"), out, "--state", "1000:1096", *types]
    subprocess.run(command, env=env, check=True, timeout=120)
    assert out.read_bytes() == states["uniform q8_0"][0]


def test_a_prompt_cache_file_is_used_under_its_plan_and_refused_under_another(tmp_path: Path) -> None:
    """``llama-completion --prompt-cache`` writes and reads whole states."""
    for name in ("mixed", "mixed otherwise"):
        CACHES[name].save(tmp_path / f"{name}.json")

    def complete(plan: str) -> subprocess.CompletedProcess[str]:
        asked = ("-p", "The capital of France is Paris.", "-n", "8", "--temp", "0", "-c", "512", "-no-cnv")
        cache = ("--prompt-cache", tmp_path / "cache", "--kv-config", tmp_path / f"{plan}.json", "--no-warmup")
        command = [find_tool("llama-completion"), "-m", fetch_model("smollm2-135m"), *asked, *cache]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)

    first, again, refused = complete("mixed"), complete("mixed"), complete("mixed otherwise")
    assert "session file does not exist" in first.stderr
    assert "session file has exact match for prompt" in again.stderr
    assert again.stdout == first.stdout != ""
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "the state was saved with the KV cache plan [0:f16+rot/f16+rot 1:q8_0+rot/q4_0+rot" in refused.stderr
