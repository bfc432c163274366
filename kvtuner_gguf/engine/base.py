"""What a tuning needs of a model, whatever runs it.

Tensors of torch are the arrays of all engines; whether torch also runs the model is up to each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.gradients import SeeGradients
from kvtuner_gguf.engine.logits_judge import LogitsJudge, kld_when_moved
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.plan.shape import ModelShape

See = Callable[[int, Attention], None]
"""Called with a layer and what its attention has used."""


class TokenJudge(Protocol):
    """What plans lose on a text, token by token; ``pairs`` has an entry per layer."""

    def kld(self, pairs: Sequence[Pair]) -> Tensor:
        """KLD in nats of every scored token under ``pairs``, against the exact model."""
        ...

    def nll(self, pairs: Sequence[Pair]) -> Tensor:
        """Negative log-likelihood in nats of every token after a scored one, under ``pairs``."""
        ...

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Later plans differ little from ``pairs``: what can be kept of a run of these may be."""
        ...


class Engine(ABC):
    """One model, called ``model`` in messages. Results call the engine ``name``, and depend on the ``versions``.

    ``is_exact``: its arithmetic has no noise that could be taken for a difference between plans.
    It may load the model when it is first asked for something. All methods raise `KvtunerError` where that fails.
    """

    name: str
    model: str
    shape: ModelShape
    device: str
    versions: Mapping[str, str]
    has_gradients: bool = False
    is_exact: bool = False

    @property
    def can_move(self) -> bool:
        """Whether a text at later positions gives the same predictions, but for rounding, as RoPE is relative."""
        return True

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """The tokens of ``text``, none added."""

    @abstractmethod
    def capture(self, tokens: Tensor, see: See) -> None:
        """Run ``tokens`` [chunks, context] with an exact cache; ``see`` each layer, from the first to the last.

        Layers without a cache of their own are left out.
        """

    @abstractmethod
    def logits(self, plan: Plan, tokens: Tensor, rows: slice, start: int = 0) -> Iterator[Tensor]:
        """Logits of what follows ``tokens[rows]`` in the chunk ``tokens`` [context] with the caches of ``plan``.

        The first token of the chunk is the first in the cache, and stands at position ``start``.
        In blocks [some rows, vocabulary], float32, the same ones for every plan: with a large vocabulary all rows would
        need much memory.
        """

    def gradients(self, tokens: Tensor, first: int, see: SeeGradients, ends: Ends | None = None, seed: int = 0) -> None:
        """Run ``tokens`` [chunks, context] with an exact cache, and back; ``see`` every layer of every chunk.

        Labels are drawn, by the ``seed``, from the position ``first`` on; see `Gradients`.
        """
        raise KvtunerError(f"the engine {self.name} has no gradients: price the layers with --prices kld")

    def noise_floor(self, tokens: Tensor) -> float:
        """The mean KLD in nats between two runs of ``tokens`` [chunks, context], cache exact, that should be alike.

        They begin at other positions, where the model `can_move`, else at the same ones: then the floor is 0 unless the
        engine itself is shaky. Plans that differ by less cannot be told apart.
        """
        return 0.0 if self.is_exact else kld_when_moved(self, tokens)

    def judge(
        self, tokens: Tensor, centers: Centers | None = None, ends: Ends | None = None, scales: Scales | None = None
    ) -> TokenJudge:
        """What judges plans with ``centers``, ``ends`` and ``scales`` on ``tokens`` [chunks, context]."""
        return LogitsJudge(self, tokens, centers, ends, scales)
