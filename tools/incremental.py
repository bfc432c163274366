"""A reference that continues a sequence: what its caches hold stays, and new tokens attend over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvtuner_gguf.engine.ends import ROWS, KeysValues, attend_with_ends
from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.plan.pairs import EXACT
from kvtuner_gguf.plan.plan import Plan

CHUNK = 1024


class Decoder(Reference):
    """One sequence over the caches of a plan.

    Every position is read as a run over the whole sequence reads it. Tokens come as they are, `CHUNK` at a time, so
    that a long prompt needs no square of its length.
    """

    def __init__(self, path: Path, architecture: str, device: str = "cpu") -> None:
        super().__init__(path, architecture, device)
        self.begin(Plan.uniform(EXACT, self.n_layer), 0)

    def begin(self, plan: Plan, n_tokens: int) -> None:
        """Start a sequence of at most ``n_tokens`` with the caches of ``plan``."""
        self._plan, self._size, self._n_fed = plan, n_tokens, 0
        self._kept: dict[tuple[int, str], KeysValues] = {}

    def feed(self, tokens: Tensor) -> Tensor:
        """Logits [vocabulary] of what follows ``tokens`` [tokens], which follow those fed before."""
        plan = self._plan
        for chunk in tokens.split(CHUNK):
            # the copy shares what is kept
            reading = self.reading(plan.centers, plan.ends, self._n_fed, plan.scales)
            hidden = reading.run(reading.embed(chunk[None]), plan.pairs)
            self._n_fed += len(chunk)
        return self.logits(hidden[0, -1:])[0]

    def greedy(self, tokens: Tensor, n_tokens: int) -> list[int]:
        """The ``n_tokens`` most likely tokens after ``tokens``."""
        found = [int(self.feed(tokens).argmax())]
        while len(found) < n_tokens:
            found.append(int(self.feed(tokens.new_tensor(found[-1:])).argmax()))
        return found

    def text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: object, **kwargs: object
    ) -> tuple[Tensor, None]:
        il = module.layer_idx
        cached = self._keep(il, "cached", self.cache.cached(key, value, self._pair, il, self._rotated))
        exact = self.cache.exact(key, value, self._pair, il, self._rotated)
        if exact is None or self.cache.ends is None:
            return attend_last(query, cached).transpose(1, 2), None
        return attend_with_ends(query, cached, self._keep(il, "exact", exact), self.cache.ends).transpose(1, 2), None

    def _keep(self, il: int, source: str, new: KeysValues) -> KeysValues:
        """All positions up to the last of ``new``, which come after those kept before."""
        if (il, source) not in self._kept:
            self._kept[il, source] = KeysValues(*(x.new_empty(1, x.shape[1], self._size, x.shape[3]) for x in new))
        stop = self.cache.start + new.key.shape[2]
        both = self._kept[il, source]
        for kept, x in zip(both, new, strict=True):
            kept[:, :, self.cache.start : stop] = x
        return KeysValues(*(kept[:, :, :stop] for kept in both))


def attend_last(query: Tensor, kept: KeysValues) -> Tensor:
    """Causal attention [batch, heads, tokens, head size] of the queries of the last positions."""
    positions = torch.arange(kept.key.shape[2], device=query.device)
    blocks, stop = [], len(positions) - query.shape[2]
    for rows in query.split(ROWS, 2):
        start, stop = stop, stop + rows.shape[2]
        seen = positions[:stop] <= positions[start:stop, None]
        read = (x[:, :, :stop] for x in kept)
        blocks.append(scaled_dot_product_attention(rows, *read, attn_mask=seen, enable_gqa=True))
    return torch.cat(blocks, 2)
