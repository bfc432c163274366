"""What attention reads back from a cache: channel order, scales, rotation, centers, quantization and exact ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Rope
from kvtuner_gguf.engine.ends import KeysValues
from kvtuner_gguf.engine.fakequant import fake_quantize
from kvtuner_gguf.engine.rotation import rotate, rotation_size
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import UNQUANTIZED, Pair
from kvtuner_gguf.plan.scales import Scales


def rotated_sides(pairs: Sequence[Pair]) -> tuple[bool, bool]:
    """Whether the runtime rotates K and V: those of all layers, where one layer of that side is quantized.

    Source: ``any_quantized_k`` and ``any_quantized_v`` in ``cpp/runtime/kvtuner-cache.cpp``.
    """
    k, v = zip(*(pair.types for pair in pairs), strict=True)
    return any(t.is_quantized for t in k), any(t.is_quantized for t in v)


@dataclass(frozen=True)
class CacheModel:
    """``interleaved_rope``: the runtime pairs channels 2i and 2i+1 in RoPE, where the torch model pairs i and i+n/2.

    Blocks, rotation, ``centers`` and ``scales`` work on the runtime's order, so keys of such a model are put into it
    first; they are multiplied by the scales, and divided when they are read. What is quantized is rotated; other types
    are where ``rotated`` says that another layer is quantized. ``rope``, in the runtime's order, turns centers that
    have a span; the first token stands at the position ``start``.
    """

    interleaved_rope: bool
    centers: Centers | None = None
    ends: Ends | None = None
    rope: Rope | None = None
    start: int = 0
    scales: Scales | None = None

    def cached(self, k: Tensor, v: Tensor, pair: Pair, il: int, rotated: tuple[bool, bool]) -> KeysValues:
        """`keys` and `values` of layer ``il`` with this pair; ``rotated`` as of `rotated_sides`."""
        return KeysValues(self.keys(k, pair.k, il, rotated[0]), self.values(v, pair.v, rotated[1]))

    def exact(self, k: Tensor, v: Tensor, pair: Pair, il: int, rotated: tuple[bool, bool]) -> KeysValues | None:
        """What a layer with this pair, which sees all positions, reads at the ends; None where it has none.

        A side that loses nothing loses nothing there.
        """
        if self.ends is None or not any(side.is_quantized for side in pair.types):
            return None
        kind = self.ends.type
        both = (UNQUANTIZED if side.name == UNQUANTIZED else kind for side in pair.types)
        return self.cached(k, v, Pair(*both), il, rotated)

    def keys(self, k: Tensor, type_name: str, il: int, rotated: bool = False) -> Tensor:
        """``k`` [batch, KV heads, tokens, head size] after RoPE, as read from the K cache of layer ``il``."""
        if type_name == UNQUANTIZED:  # neither rotation nor a center nor a scale rounds
            return k
        k = self.runtime_order(k)
        size = _rotated_size(k, type_name, rotated, True)
        scale = self._scale(k, il)
        center = self._center(k, il, size, scale)
        read = rotate(fake_quantize(rotate(k * scale, size) - center, type_name, True) + center, size)
        return self.model_order(read / scale)

    def values(self, v: Tensor, type_name: str, rotated: bool = False) -> Tensor:
        """``v`` [batch, KV heads, tokens, head size], as read from the V cache."""
        if type_name == UNQUANTIZED:
            return v
        size = _rotated_size(v, type_name, rotated, False)
        return rotate(fake_quantize(rotate(v, size), type_name, False), size)

    def _scale(self, k: Tensor, il: int) -> Tensor | float:
        """[KV heads, 1, head size]; 1 without a scale."""
        values = None if self.scales is None else self.scales.array_k(il)
        return 1.0 if values is None else torch.from_numpy(values).reshape(-1, 1, k.shape[-1]).to(k)

    def _center(self, k: Tensor, il: int, size: int | None, scale: Tensor | float) -> Tensor | float:
        """What the scaled and rotated ``k`` loses, [KV heads, 1 or tokens, head size]; 0 without a center."""
        values = None if self.centers is None else self.centers.array_k(il)
        if self.centers is None or values is None:
            return 0.0
        center = torch.from_numpy(values).reshape(-1, 1, k.shape[-1]).to(k)
        span = self.centers.span
        if span is None:
            return rotate(center * scale, size)
        return self._turned_center(center, scale, k.shape[2], span, size)

    def _turned_center(
        self, center: Tensor, scale: Tensor | float, n_tokens: int, span: int, size: int | None
    ) -> Tensor:
        """That of each token's block of ``span`` positions: the runtime's table of them is rotated and float16."""
        if self.rope is None:
            raise KvtunerError("this engine does not tell its RoPE, which turns centers: use centers without a span")
        positions = torch.arange(self.start, self.start + n_tokens, device=center.device)
        first = self.start // span
        blocks = torch.arange(first, int(positions[-1]) // span + 1, device=center.device)
        turned = self.rope.turned(center, blocks * span).to(center) * scale
        table = rotate(turned, size).half().to(center)
        return table[:, positions // span - first]

    def runtime_order(self, k: Tensor) -> Tensor:
        """The channels of keys or queries, last dimension, in the order of the runtime's cache."""
        return _interleave(k) if self.interleaved_rope else k

    def model_order(self, k: Tensor) -> Tensor:
        """`runtime_order` undone."""
        return _deinterleave(k) if self.interleaved_rope else k


def _rotated_size(x: Tensor, type_name: str, rotated: bool, is_key: bool) -> int | None:
    """How many channels of ``x`` are rotated together before they get this type; None without a rotation."""
    return rotation_size(x.shape[-1], is_key) if rotated or cache_type(type_name).is_quantized else None


def _interleave(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.stack((first, second), -1).flatten(-2)


def _deinterleave(x: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    return torch.cat((pairs[..., 0], pairs[..., 1]), -1)
