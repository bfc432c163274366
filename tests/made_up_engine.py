"""An engine of a few numbers: attention with a window, a soft cap and sinks, over a vocabulary of 16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention, Causal
from kvtuner_gguf.engine.base import Engine, See
from kvtuner_gguf.engine.cachemodel import CacheModel, rotated_sides
from kvtuner_gguf.engine.ends import KeysValues, is_exact
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import EXACT
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape

N_LAYER, N_HEAD, SIZE, N_VOCAB = 3, 2, 32, 16
ROWS = 7
WINDOWED = 1


class MadeUp(Engine):
    """Two query heads share the one KV head of each layer; the weights are random."""

    name, model, device = "made up", "the model made up", "paper"

    def __init__(self) -> None:
        self.shape = ModelShape("made-up", (1,) * N_LAYER, SIZE, SIZE)
        self.versions = {"made up": "1"}
        random = torch.Generator().manual_seed(5)
        self._embedding = torch.randn(N_VOCAB, SIZE, generator=random)
        self._query = torch.randn(N_LAYER, N_HEAD, SIZE, SIZE, generator=random) / SIZE**0.5
        self._out = torch.randn(N_LAYER, N_HEAD * SIZE, SIZE, generator=random) / SIZE**0.5
        self._offset = 2 * torch.randn(SIZE, generator=random)

    def tokenize(self, text: str) -> list[int]:
        return [byte % N_VOCAB for byte in text.encode()]

    def capture(self, tokens: Tensor, see: See) -> None:
        inputs = torch.stack([torch.stack(self._run(chunk, Plan.uniform(EXACT, N_LAYER))) for chunk in tokens], 1)
        for il in range(N_LAYER):
            see(il, self._attention(il, inputs[il]))

    def logits(self, plan: Plan, tokens: Tensor, rows: slice, start: int = 0) -> Iterator[Tensor]:
        return iter((self._run(tokens, plan)[-1] @ self._embedding.T)[rows].split(ROWS))

    def _attention(self, il: int, x: Tensor) -> Attention:
        """What layer ``il`` makes of its input [chunks, tokens, SIZE]; each layer meets its tokens in another way."""
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        return Attention(
            query=x[:, None] @ self._query[il],
            key=(x + self._offset)[:, None],
            value=x.flip(-1)[:, None],
            scale=0.2,
            mask=Causal(window=9 if il == WINDOWED else None),
            soft_cap=5.0 if il == 2 else None,
            sinks=torch.tensor([0.5, -1.0]) if il == 0 else None,
        )

    def _run(self, tokens: Tensor, plan: Plan) -> list[Tensor]:
        """The input of every layer and the output of the last one, [tokens, SIZE]."""
        cache = CacheModel(interleaved_rope=False, centers=plan.centers, ends=plan.ends, scales=plan.scales)
        rotated = rotated_sides(plan.pairs)
        states = [self._embedding[tokens]]
        for il, pair in enumerate(plan.pairs):
            used = self._attention(il, states[-1][None])
            cached = cache.cached(used.key, used.value, pair, il, rotated)
            exact = cache.exact(used.key, used.value, pair, il, rotated) if il != WINDOWED else None
            heads = _attend(used, cached, exact, plan.ends)[0].transpose(0, 1).flatten(1)
            states.append(states[-1] + heads @ self._out[il])
        return states


def _attend(used: Attention, cached: KeysValues, exact: KeysValues | None, ends: Ends | None) -> Tensor:
    """The output [1, query heads, tokens, SIZE]; all scores are made from both sources, where there are two."""
    rows = torch.arange(used.query.shape[2])
    scores = used.query @ cached.key.transpose(-1, -2)
    if exact is None or ends is None:
        return used.weights(scores, rows, 0) @ cached.value
    chosen = is_exact(ends, rows, len(rows))
    weights = used.weights(torch.where(chosen, used.query @ exact.key.transpose(-1, -2), scores), rows, 0)
    return weights * chosen @ exact.value + weights * ~chosen @ cached.value
