"""The engine of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvtuner_gguf.engine import ENGINES
from kvtuner_gguf.engine.devices import Device
from kvtuner_gguf.engine.exact import is_exact_in_torch
from kvtuner_gguf.engine.llama.weights import available_memory, n_weights
from kvtuner_gguf.engine.torch.install import import_torch
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.shape import ModelShape

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import Engine

# bytes that torch needs of a weight, the model's file and its copies while it is loaded
_BYTES = 5


def open_engine(
    model: Path,
    shape: ModelShape,
    device: str = "cpu",
    threads: int | None = None,
    engine: str = "auto",
    before: Mapping[str, Any] = MappingProxyType({}),
) -> Engine:
    """What runs the GGUF ``model``, which it loads when it is first asked for something: one of `ENGINES`.

    ``before`` are the facts of a tuning that goes on: what the free memory decides, the engine if ``"auto"`` and the
    weights of llama, stays as it is there. Raises `KvtunerError` where there is no such engine, or what it needs is not
    installed.
    """
    if engine not in ENGINES:
        raise KvtunerError(f"unknown engine {engine!r}: use one of {', '.join(ENGINES)}")
    import_torch(threads)
    if engine == "auto":
        engine = "torch" if device != "cpu" else _engine_of(before) or chosen_engine(read_model(model))
    if engine == "torch":
        from kvtuner_gguf.engine.torch.engine import TorchEngine

        return TorchEngine(model, shape, device)
    from kvtuner_gguf.engine.llama.engine import LlamaEngine

    if device != "cpu":
        raise KvtunerError(f"--device {device} is for torch: the engine llama computes where the built llama.cpp does")
    return LlamaEngine(model, shape, threads, before.get("weights"))


def _engine_of(facts: Mapping[str, Any]) -> str | None:
    found = facts.get("engine")
    return found if found in ENGINES and found != "auto" else None


@dataclass(frozen=True)
class Helper:
    """How another process opens the engine on ``device``."""

    device: Device
    open: Callable[[], Engine]


def open_engines(
    model: Path,
    shape: ModelShape,
    devices: Sequence[Device],
    threads: int | None = None,
    engine: str = "auto",
    before: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Engine, list[Helper]]:
    """`open_engine` on the first of ``devices``, and how the same one is opened on each of the others."""

    def name(device: Device) -> str:
        return device.name if device.visible is None else "cpu"  # llama.cpp takes the one that it sees

    first, *others = devices
    opened = open_engine(model, shape, name(first), threads, engine, before)
    chosen = (threads, opened.name, {**before, **opened.versions})
    return opened, [Helper(other, partial(open_engine, model, shape, name(other), *chosen)) for other in others]


def chosen_engine(headers: Sequence[GgufHeader]) -> str:
    """torch where its reference is exact and fits in memory, else llama."""
    fits = is_exact_in_torch(headers) and _BYTES * n_weights(headers) <= available_memory()
    return "torch" if fits else "llama"
