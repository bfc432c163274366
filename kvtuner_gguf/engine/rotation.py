"""The rotation of K and V caches with a quantized layer: a Walsh-Hadamard transform within each head.

Source: ``build_input_k_rot`` and ``build_input_v_rot`` in upstream's ``src/llama-kv-cache.cpp``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

SMALLEST = 64


@lru_cache
def hadamard(n: int) -> Tensor:
    """The orthonormal Hadamard matrix of Sylvester's order, ``n`` x ``n``; it is its own inverse."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix / math.sqrt(n)


def rotation_size(head_dim: int, is_key: bool) -> int | None:
    """How many channels are rotated together; None where the head size allows no rotation."""
    if head_dim % SMALLEST:
        return None
    return (head_dim & -head_dim) if is_key else SMALLEST


def rotate(x: Tensor, size: int | None) -> Tensor:
    """Rotate groups of ``size`` channels of the last dimension; applied twice it gives ``x`` back."""
    if size is None:
        return x
    return (x.unflatten(-1, (-1, size)) @ hadamard(size).to(x)).flatten(-2)
