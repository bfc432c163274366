"""What a ROPE node of a graph does, as the rotary embedding that the tuning knows.

Source: ``ggml_compute_forward_rope`` and ``rope_yarn`` of ``ggml/src/ggml-cpu/ops.cpp`` at the pinned base; YaRN is
arXiv 2309.00071.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from kvtuner_gguf.engine.attention import Rope
from kvtuner_gguf.engine.llama.nodes import Node

# of the mode: pairs are channels far apart, as in GPT-NeoX and in the kinds for images, whose positions text shares
_HALVES = 2 | 8
_FIRST_CHANNEL_AT = 15


def rope_of(node: Node, head_size: int) -> Rope | None:
    """What ``node`` does to heads of ``head_size`` channels, the factor aside that some scalings give to attention.

    None where it does not begin with the first channel.
    """
    ints, floats = node.ints(), node.floats()
    if ints[_FIRST_CHANNEL_AT]:
        return None
    n_rot, interleaved, n_ctx = int(ints[1]), not ints[2] & _HALVES, int(ints[4])
    base, scale, extrapolated, fast, slow = (float(floats[i]) for i in (5, 6, 7, 9, 10))
    pairs = np.arange(n_rot // 2)
    frequencies = base ** (-2.0 * pairs / n_rot)
    factors = node.source(2)
    if factors is not None:
        frequencies = frequencies / factors.array().reshape(-1)[: n_rot // 2].astype(np.float64)
    mixed = extrapolated * _ramp(pairs, n_rot, n_ctx, base, fast, slow) if extrapolated else 0.0 * pairs
    turned = torch.zeros(head_size // 2, dtype=torch.float64)
    turned[: n_rot // 2] = torch.from_numpy(frequencies * (scale * (1 - mixed) + mixed))
    return Rope(turned, interleaved, n_rot)


def _ramp(pairs: np.ndarray, n_rot: int, n_ctx: int, base: float, fast: float, slow: float) -> np.ndarray:
    """By how much each pair keeps its own frequency."""

    def turning(times: float) -> float:
        """The pair that turns so many times in the context of the training."""
        return n_rot * math.log(n_ctx / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0.0, math.floor(turning(fast))), min(n_rot - 1.0, math.ceil(turning(slow)))
    return 1 - ((pairs - low) / max(0.001, high - low)).clip(0, 1)
