"""The engine of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_gguf.engine.torch.install import import_torch
from kvtuner_gguf.plan.shape import ModelShape

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import Engine


def open_engine(model: Path, shape: ModelShape, device: str = "cpu", threads: int | None = None) -> Engine:
    """The torch reference of the GGUF ``model``, which it loads when it is first asked for something.

    Raises `KvtunerError` where what it needs is not installed.
    """
    import_torch(threads)
    from kvtuner_gguf.engine.torch.engine import TorchEngine

    return TorchEngine(model, shape, device)
