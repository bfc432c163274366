"""What attention reads back from a cache: channel order, rotation and quantization of one head's keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtuner_gguf.cachetypes import cache_type
from kvtuner_gguf.tuning.fakequant import fake_quantize
from kvtuner_gguf.tuning.rotation import rotate, rotation_size


@dataclass(frozen=True)
class CacheModel:
    """``interleaved_rope``: the runtime pairs channels 2i and 2i+1 in RoPE, where the torch model pairs i and i+n/2.

    Blocks and rotation work on the runtime's order, so keys of such a model are put into it first.
    """

    interleaved_rope: bool

    def keys(self, k: Tensor, type_name: str) -> Tensor:
        """``k`` [batch, KV heads, tokens, head size] after RoPE, as read from a K cache of ``type_name``."""
        ordered = _interleave(k) if self.interleaved_rope else k
        read = _through(ordered, type_name, is_key=True)
        return _deinterleave(read) if self.interleaved_rope else read

    def values(self, v: Tensor, type_name: str) -> Tensor:
        """``v`` [batch, KV heads, tokens, head size], as read from a V cache of ``type_name``."""
        return _through(v, type_name, is_key=False)


def _through(x: Tensor, type_name: str, is_key: bool) -> Tensor:
    size = rotation_size(x.shape[-1], is_key) if cache_type(type_name).is_quantized else None
    return rotate(fake_quantize(rotate(x, size), type_name), size)


def _interleave(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.stack((first, second), -1).flatten(-2)


def _deinterleave(x: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    return torch.cat((pairs[..., 0], pairs[..., 1]), -1)
