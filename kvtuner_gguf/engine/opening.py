"""The engine of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvtuner_gguf.engine import ENGINES
from kvtuner_gguf.engine.devices import Device, check_torch_has
from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.engine.llama.weights import available_memory, n_weights
from kvtuner_gguf.engine.torch.install import check_installed, import_torch
from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.shape import ModelShape

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import Engine

# architectures whose attention the torch reference has
OF_TORCH = ("llama", "qwen2", "qwen3")
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


def check_engine(model: Path, headers: Sequence[GgufHeader], engine: str, device: str = "cpu") -> None:
    """Raise `KvtunerError` where ``engine`` cannot run the ``model`` on ``device``, or what it needs is not installed.

    As far as that is known without torch, and without loading the model.
    """
    check_installed()
    if engine == "auto":
        engine = "torch" if device != "cpu" else chosen_engine(headers)
    if engine == "llama":
        patched_llama_cpp()
    elif why := _torch_obstacle(headers):
        raise KvtunerError(f"{model}: torch cannot run this model, since {why}: give --engine llama")


def _torch_obstacle(headers: Sequence[GgufHeader]) -> str | None:
    """Why the reference in torch does not run the model as llama.cpp does; None where it does."""
    first = headers[0]
    if first.architecture not in OF_TORCH:
        return f"it knows {', '.join(OF_TORCH)}, not {first.architecture}"
    if len(headers) > 1:
        return "it is split"
    scaling = first.get(f"{first.architecture}.rope.scaling.type")
    return None if scaling in (None, "none") else f"it leaves out the RoPE scaling {shown(scaling)}"


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

    import_torch(threads)
    if engine != "llama":
        check_torch_has(devices)
    first, *others = devices
    opened = open_engine(model, shape, first.in_engine, threads, engine, before)
    chosen = (threads, opened.name, {**before, **opened.versions})
    return opened, [Helper(other, partial(open_engine, model, shape, other.in_engine, *chosen)) for other in others]


def engine_on_gpus(headers: Sequence[GgufHeader], engine: str) -> str:
    """``engine``; where that is ``"auto"``, llama for a model that torch does not run as llama.cpp does."""
    return "llama" if engine == "auto" and _torch_obstacle(headers) else engine


def chosen_engine(headers: Sequence[GgufHeader]) -> str:
    """torch where its reference is exact and fits in memory, else llama."""
    is_exact = _torch_obstacle(headers) is None
    return "torch" if is_exact and _BYTES * n_weights(headers) <= available_memory() else "llama"
