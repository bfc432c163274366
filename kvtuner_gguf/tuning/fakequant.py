"""Quantize and dequantize as the KV cache does, bit for bit.

Equal to the bit, but for the sign of zeros. A cache write goes through ``from_float`` of ggml's CPU traits, a read
through ``to_float`` of the common ones. On x86 with AVX, q8_0 is written with the scale ``127 / max`` and rounds halves
to even, where the portable reference takes the reciprocal of the scale and rounds halves away from zero; that is
followed here. All other types are written by the reference code on every machine.
Source: ``ggml/src/ggml-quants.c`` and ``ggml/src/ggml-cpu/arch/x86/quants.c`` at the pinned base.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvtuner_gguf.cachetypes import cache_type
from kvtuner_gguf.errors import KvtunerError

# levels of iq4_nl, from the format
IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_NL_SMALLEST = 1e-15


def fake_quantize(x: Tensor, type_name: str) -> Tensor:
    """What the cache gives back for ``x`` (float32, last dimension whole blocks) when it holds ``type_name``."""
    kind = cache_type(type_name)
    if x.shape[-1] % kind.block_size:
        raise KvtunerError(f"{type_name} has blocks of {kind.block_size} values, which do not divide {x.shape[-1]}")
    blocks = x.float().reshape(-1, kind.block_size)
    return _QUANTIZERS[type_name](blocks).reshape(x.shape)


def _half(x: Tensor) -> Tensor:
    return x.half().float()


def _reciprocal(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)


def _codes(x: Tensor, largest: int) -> Tensor:
    """The integer part of ``x``, which is not negative, as a float of at most ``largest``."""
    return x.nan_to_num(0.0).clamp(0, largest).trunc()


def _q8_0(x: Tensor) -> Tensor:
    largest = x.abs().amax(-1, keepdim=True)
    steps = torch.full_like(largest, 127.0)  # torch rounds a number over a tensor twice, by way of the reciprocal
    inverse = torch.where(largest == 0, torch.zeros_like(largest), steps / largest)
    codes = (x * inverse).nan_to_num(0.0).round()
    return codes * _half(largest / 127.0)


def _symmetric(x: Tensor, half_levels: int) -> Tensor:
    """q4_0 (8) and q5_0 (16): the value of largest magnitude becomes the lowest level."""
    peak = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = peak / -float(half_levels)
    codes = _codes(x * _reciprocal(scale) + (half_levels + 0.5), 2 * half_levels - 1)
    return (codes - half_levels) * _half(scale)


def _asymmetric(x: Tensor, n_steps: int) -> Tensor:
    """q4_1 (15) and q5_1 (31): the levels reach from the smallest value to the largest."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (high - low) / float(n_steps)
    codes = _codes((x - low) * _reciprocal(scale) + 0.5, n_steps)
    return codes * _half(scale) + _half(low)


def _nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level next to ``x``; halfway goes up, as upstream's binary search does."""
    above = torch.searchsorted(levels, x.contiguous(), right=True).clamp(1, len(levels) - 1)
    nearer_below = x - levels[above - 1] < levels[above] - x
    return torch.where(nearer_below, above - 1, above)


def _iq4_nl(x: Tensor) -> Tensor:
    """The scale is fitted by least squares weighted with x squared, summed in the order of upstream's loop."""
    levels = torch.tensor(IQ4_NL_LEVELS, dtype=torch.float32, device=x.device)
    magnitude, where = x.abs().max(-1, keepdim=True)
    peak = x.gather(-1, where)
    codes = levels[_nearest_level(x * (1.0 / (peak / levels[0])), levels)]
    weighted = x * x * codes
    dots, squares = torch.zeros_like(peak[:, 0]), torch.zeros_like(peak[:, 0])
    for j in range(x.shape[-1]):
        dots = dots + weighted[:, j] * x[:, j]
        squares = squares + weighted[:, j] * codes[:, j]
    scale = torch.where(squares > 0, dots / squares, torch.zeros_like(dots))[:, None]
    values = codes * _half(scale)
    return torch.where(magnitude < IQ4_NL_SMALLEST, torch.zeros_like(values), values)


_QUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda x: x,
    "f16": _half,
    "bf16": lambda x: x.bfloat16().float(),
    "q8_0": _q8_0,
    "q5_1": lambda x: _asymmetric(x, 31),
    "q5_0": lambda x: _symmetric(x, 16),
    "q4_1": lambda x: _asymmetric(x, 15),
    "q4_0": lambda x: _symmetric(x, 8),
    "iq4_nl": _iq4_nl,
}
