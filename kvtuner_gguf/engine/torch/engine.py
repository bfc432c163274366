"""The torch reference as an engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
import transformers
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.base import Engine, See
from kvtuner_gguf.engine.gradients import SeeGradients
from kvtuner_gguf.engine.torch.gradients import layer_gradients
from kvtuner_gguf.engine.torch.judge import TorchJudge
from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.plan.shape import ModelShape

# rows of logits at a time: with a vocabulary of 152k each has 0.6 MB per cache
ROWS = 128


class TorchEngine(Engine):
    """The model of the GGUF at ``path``, loaded when it is first used; judging restarts at the first changed layer.

    In float32 two runs that should be alike differ by next to nothing: it counts as exact.
    """

    name = "torch"
    has_gradients = True
    is_exact = True

    def __init__(self, path: Path, shape: ModelShape, device: str = "cpu") -> None:
        self.model, self.shape, self.device = str(path), shape, device
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._path = path

    @cached_property
    def reference(self) -> Reference:
        return Reference(self._path, self.shape.architecture, self.device)

    def tokenize(self, text: str) -> list[int]:
        return self.reference.tokenize(text)

    def capture(self, tokens: Tensor, see: See) -> None:
        reference = self.reference
        order = reference.cache.runtime_order

        def in_runtime_order(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
            scale, channels = query.shape[-1] ** -0.5, _model_channels(reference, query)
            see(il, Attention(order(query), order(key), value, scale, channels=channels, rope=reference.rope))

        reference.run(reference.embed(tokens), capture=in_runtime_order)

    def logits(self, plan: Plan, tokens: Tensor, rows: slice, start: int = 0) -> Iterator[Tensor]:
        reference = self.reference.reading(plan.centers, plan.ends, start, plan.scales)
        hidden = reference.run(reference.embed(tokens[None]), plan.pairs)[0, rows]
        return map(reference.logits, hidden.split(ROWS))

    def gradients(self, tokens: Tensor, first: int, see: SeeGradients, ends: Ends | None = None, seed: int = 0) -> None:
        reference, generator = self.reference.reading(ends=ends), torch.Generator().manual_seed(seed)
        for chunk in tokens:
            for il, found in layer_gradients(reference, chunk, first, generator):
                see(il, found)

    def judge(
        self, tokens: Tensor, centers: Centers | None = None, ends: Ends | None = None, scales: Scales | None = None
    ) -> TorchJudge:
        return TorchJudge(self.reference.reading(centers, ends, scales=scales), tokens)


def _model_channels(reference: Reference, query: Tensor) -> Tensor | None:
    """Where the model's channels are in the runtime's order; None where the two are the same."""
    if not reference.cache.interleaved_rope:
        return None
    return reference.cache.model_order(torch.arange(query.shape[-1], device=query.device))
