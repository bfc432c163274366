"""What the attention of one layer has used, and the weights that it gives to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Mask(Protocol):
    """Which tokens are not seen."""

    def hides(self, rows: Tensor, n_tokens: int) -> Tensor:
        """Whether the queries at the positions ``rows`` do not see the first ``n_tokens``: bool [rows, tokens]."""
        ...


@dataclass(frozen=True)
class Causal:
    """A token sees itself and those before it, or of these the last ``window``, itself included."""

    window: int | None = None

    def hides(self, rows: Tensor, n_tokens: int) -> Tensor:
        distance = rows[:, None] - torch.arange(n_tokens, device=rows.device)
        hidden = distance < 0
        return hidden if self.window is None else hidden | (distance >= self.window)


@dataclass(frozen=True)
class Seen:
    """What ``seen`` [tokens, tokens] says, row by row, of the tokens of a chunk."""

    seen: Tensor

    def hides(self, rows: Tensor, n_tokens: int) -> Tensor:
        return ~self.seen[rows.to(self.seen.device), :n_tokens]


@dataclass(frozen=True)
class Alibi:
    """Scores lose their head's ``slopes`` [query heads] for every token between query and key (arXiv 2108.12409)."""

    slopes: Tensor

    @classmethod
    def of(cls, n_head: int, max_bias: float) -> Alibi:
        """Those of so many heads; ``max_bias`` is the exponent of the last head's slope, as in a GGUF."""
        n_whole = 1 << (n_head.bit_length() - 1)
        heads = torch.arange(n_head, dtype=torch.float64)
        exponents = torch.where(heads < n_whole, heads + 1, heads - n_whole + 0.5)
        return cls(torch.exp2(-max_bias / n_whole * exponents))

    def added(self, rows: Tensor, n_tokens: int, n_head_kv: int) -> Tensor:
        """To scores of the queries at ``rows``: [KV heads, query heads of each, rows, tokens]."""
        distance = (rows[:, None] - torch.arange(n_tokens, device=rows.device)).to(self.slopes)
        return -self.slopes.reshape(n_head_kv, -1, 1, 1) * distance


@dataclass(frozen=True)
class Rope:
    """The rotary embedding: at position p it turns the pair i of channels by p * ``frequencies[i]`` (arXiv 2104.09864).

    A pair are the channels 2i and 2i + 1 where it is ``interleaved``, else i and i + n / 2 of n. Of the channels only
    the first ``n_rot``, None for all, are n; the others are paired in the same way and have frequencies of 0.
    """

    frequencies: Tensor
    interleaved: bool
    n_rot: int | None = None

    def pairs(self, x: Tensor) -> Tensor:
        """Channels, last dimension, as complex numbers, complex128."""
        if self.interleaved:
            return torch.complex(x[..., ::2].double(), x[..., 1::2].double())
        parts = [part.chunk(2, -1) for part in x.split(self._parts(x.shape[-1]), -1)]
        return torch.cat([torch.complex(first.double(), second.double()) for first, second in parts], -1)

    def channels(self, pairs: Tensor) -> Tensor:
        """`pairs` undone, float64."""
        if self.interleaved:
            return torch.view_as_real(pairs).flatten(-2)
        parts = pairs.split([n // 2 for n in self._parts(2 * pairs.shape[-1])], -1)
        return torch.cat([x for part in parts for x in (part.real, part.imag)], -1)

    def _parts(self, n: int) -> list[int]:
        """Channels that are turned, and those behind them."""
        n_rot = n if self.n_rot is None else self.n_rot
        return [n_rot, n - n_rot] if n_rot < n else [n]

    def turns(self, positions: Tensor) -> Tensor:
        """By what each position multiplies the pairs: complex128 [positions, pairs]."""
        angles = positions.double()[:, None] * self.frequencies.double()
        return torch.polar(torch.ones_like(angles), angles)

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` [..., positions or 1, channels], each row so many positions further on: float64."""
        return self.channels(self.pairs(x) * self.turns(positions))


@dataclass(frozen=True)
class Attention:
    """Queries, keys and values of one layer, [chunks, heads, tokens, head size], float32, and how they meet.

    Keys are as they are written to the cache and channels are in the order of the runtime's; groups of query heads, one
    after the other, share a KV head. Products of queries and keys are multiplied by ``scale``, go through a tanh of
    ``soft_cap`` where there is one, get what ``alibi`` adds and lose what ``mask``, one for all chunks or one for each,
    hides; ``sinks`` [query heads] take part in the softmax.
    ``channels`` is the order in which the engine adds up the products of a query and a key, None as they are. ``rope``
    is what has turned queries and keys, from position 0 on; an engine tells it in all layers or in none. Values are the
    first channels of keys, and are read from these, where they are ``latent``. Products are those of distances of
    positions alone where they are ``relative``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    mask: Mask | tuple[Mask, ...] = Causal()
    soft_cap: float | None = None
    sinks: Tensor | None = None
    channels: Tensor | None = None
    rope: Rope | None = None
    alibi: Alibi | None = None
    latent: bool = False
    relative: bool = True

    def summed(self, x: Tensor) -> Tensor:
        """Queries or keys in the order of ``channels``: sums over them then have the bits that the engine's have."""
        return x if self.channels is None else x.index_select(-1, self.channels)

    def lost_by_keys(self, center: Tensor, span: int | None) -> Tensor:
        """What each key loses of ``center`` [KV heads, head size]: [KV heads, 1 or tokens, head size].

        Blocks of ``span`` positions lose it as RoPE turns it by the first of them.
        """
        if span is None or self.rope is None:
            return center[:, None]
        positions = torch.arange(self.key.shape[2], device=center.device)
        return self.rope.turned(center[:, None], positions // span * span)

    def mask_of(self, chunk: int) -> Mask:
        return self.mask[chunk] if isinstance(self.mask, tuple) else self.mask

    def weights(self, products: Tensor, rows: Tensor, chunk: int) -> Tensor:
        """Attention weights of the queries of ``chunk`` at the positions ``rows`` to the first tokens.

        ``products`` of queries and keys and the result are [KV heads, query heads of each, rows, tokens].
        """
        scores = products / (1 / self.scale)
        if self.soft_cap is not None:
            scores = (scores / self.soft_cap).tanh() * self.soft_cap
        if self.alibi is not None:
            scores = scores + self.alibi.added(rows.to(scores.device), scores.shape[-1], len(scores)).to(scores)
        scores.masked_fill_(self.mask_of(chunk).hides(rows, scores.shape[-1]).to(scores.device), -torch.inf)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.reshape(*scores.shape[:2], 1, 1).expand(-1, -1, scores.shape[2], -1)
        return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
