"""Quantize and dequantize as the KV cache does, bit for bit.

Equal to the bit, but for the sign of zeros. A cache write goes through ``from_float`` of ggml's CPU traits, values of
q2_nl and q3_nl through ``kvtuner_from_float``, and a read through ``to_float`` of the common traits. On x86 with AVX,
q8_0 is written with the scale ``127 / max`` and rounds halves to even, where the portable reference takes the
reciprocal of the scale and rounds halves away from zero; that is followed here. All other types are written by the
reference code on every machine.
Source: ``ggml/src/ggml-quants.c`` and ``ggml/src/ggml-cpu/arch/x86/quants.c`` at the pinned base; q2_nl and q3_nl are
this project's (``cpp/format/kvtuner-quantize.h``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import cache_type

# levels of iq4_nl, from the format
IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_NL_SMALLEST = 1e-15
# q2_nl and q3_nl: lanes of a sum, rounds of the search for the scale (cpp/format/kvtuner-blocks.h)
NL_LANES = 16
NL_ROUNDS = 2


def fake_quantize(x: Tensor, type_name: str, is_key: bool = True) -> Tensor:
    """What the cache gives back for ``x`` (float32, last dimension whole blocks) when it holds ``type_name``.

    Keys and values have other scales in q2_nl and q3_nl, and are the same in all other types.
    """
    kind = cache_type(type_name)
    if x.shape[-1] % kind.block_size:
        raise KvtunerError(f"{type_name} has blocks of {kind.block_size} values, which do not divide {x.shape[-1]}")
    blocks = x.float().reshape(-1, kind.block_size)
    quantizer = _OF_VALUES.get(type_name) if not is_key else None
    return (quantizer or _QUANTIZERS[type_name])(blocks).reshape(x.shape)


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


def _lane_sum(x: Tensor) -> Tensor:
    """The sum of 64 values, [blocks, 1], in the order of the library: 16 lanes, then pair by pair."""
    first, *others = x.split(NL_LANES, -1)
    for lanes in others:
        first = first + lanes
    while first.shape[-1] > 1:
        low, high = first.chunk(2, -1)
        first = low + high
    return first


@dataclass(frozen=True)
class _NonLinear:
    """q2_nl and q3_nl: signs times ``magnitudes``, which begin at ``steps``, times a scale; it begins as ``start``."""

    magnitudes: tuple[float, ...]
    steps: tuple[float, ...]
    start: float

    def keys(self, x: Tensor) -> Tensor:
        return self._quantize(x, lambda fitted, unbiased: 0.5 * (fitted + unbiased))

    def values(self, x: Tensor) -> Tensor:
        return self._quantize(x, lambda fitted, unbiased: unbiased)

    def _quantize(self, x: Tensor, mix: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        size, squares = x.abs(), _lane_sum(x * x)
        scale = (squares / x.shape[-1]).sqrt() * torch.tensor(self.start, dtype=torch.float32)
        for _ in range(NL_ROUNDS):
            level = self._nearest(size, scale)
            scale = _lane_sum(size * level) / _lane_sum(level * level)
        level = self._nearest(size, scale)
        product = _lane_sum(size * level)
        fitted, unbiased = product / _lane_sum(level * level), squares / product
        scale = torch.where(unbiased.isfinite(), mix(fitted, unbiased), fitted)
        return _half(scale) * torch.where(x < 0, -level, level)

    def _nearest(self, size: Tensor, scale: Tensor) -> Tensor:
        levels = torch.tensor(self.magnitudes, dtype=torch.float32, device=size.device)
        return levels[sum((size >= step * scale).long() for step in self.steps)]


_Q3_NL = _NonLinear((3, 9, 16, 26), (6.0, 12.5, 21.0), 0.0828)
_Q2_NL = _NonLinear((3, 10), (6.5,), 0.151)

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
    "q3_nl": _Q3_NL.keys,
    "q2_nl": _Q2_NL.keys,
}
_OF_VALUES = {"q3_nl": _Q3_NL.values, "q2_nl": _Q2_NL.values}
