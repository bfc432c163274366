"""Models over the cache of a plan in processes of their own, by the CPU and through the emulated back end."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from tests.metal.backend import environment
from tests.metal.decode_model import CONTEXT_MADE
from tests.metal.library import ROOT

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
TEXT = (
    "The Eiffel Tower was built for the World's Fair of 1889 and stands in Paris, the capital of France, on the bank "
    "of the river Seine, where"
)


@dataclass(frozen=True)
class Run:
    """The logits [8, vocabulary] of the last tokens of a text, the kernels that ran, and pipelines of ours in the order
    in which they were made: with the context, and later."""

    logits: np.ndarray
    kernels: frozenset[str]
    with_context: tuple[str, ...]
    later: tuple[str, ...]


def run(model: Path, plan: Path | str, folder: Path, *options: str, on_device: bool, **variables: str) -> Run:
    """Decodes, with ``variables`` of the emulated back end."""
    made = folder / "logits.npy"
    done = _decode(model, plan, made, "--weights-on-host", *options, on_device=on_device, **variables)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stderr.splitlines()
    at = lines.index(CONTEXT_MADE)
    kernels = frozenset(_after("run ", lines))
    return Run(np.load(made), kernels, _after("pipeline kvtuner", lines[:at]), _after("pipeline kvtuner", lines[at:]))


def refusal(model: Path, plan: Path, folder: Path, **variables: str) -> str:
    """Why the emulated back end makes no context."""
    done = _decode(model, plan, folder / "logits.npy", on_device=True, **variables)
    assert done.returncode == 1, done.stderr[-4000:]
    return done.stderr.splitlines()[-1]


def difference(a: Run, b: Run) -> float:
    """Of logits, squared, over the squares of the first."""
    return float(((a.logits - b.logits) ** 2).sum() / (a.logits**2).sum())


def _after(beginning: str, lines: list[str]) -> tuple[str, ...]:
    return tuple(line.removeprefix(beginning) for line in lines if line.startswith(beginning))


def _decode(
    model: Path, plan: Path | str, made: Path, *options: str, on_device: bool, **variables: str
) -> subprocess.CompletedProcess[str]:
    more = environment(LIBRARIES.resolve(), "forward") | {"KVTUNER_METAL_SHOW": "1"} | variables if on_device else {}
    words = [sys.executable, "-m", "tests.metal.decode_model", model, made, "--plan", plan, "--text", TEXT, *options]
    command = [*map(str, words), *(["--device"] if on_device else [])]
    return subprocess.run(command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, check=False)
