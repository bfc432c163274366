"""Caches of others, for the torch reference: OSCAR's calibrated rotations and KVarN's balanced tiles.

OSCAR: arXiv 2605.17757 and github.com/FutureMLS-Lab/OSCAR, ``rotation/compute_kv_rotation.py`` (qqt, sst, r_h_pbr) and
the README's settings. KVarN: arXiv 2606.03458 and ``quantization/kvarn`` of vllm-project/vllm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtuner_gguf.engine.cachemodel import CacheModel
from kvtuner_gguf.engine.ends import KeysValues
from kvtuner_gguf.engine.fakequant import fake_quantize
from kvtuner_gguf.engine.rotation import hadamard
from kvtuner_gguf.plan.pairs import Pair

# of OSCAR: values that share a scale and a minimum, and the share of a row's values that clipping leaves as they are
GROUP = 128
CLIP_K, CLIP_V = 0.96, 0.92
# of KVarN: tokens of a tile, rounds of balancing, and the bounds of a standard deviation and of a scale's logarithm
TILE = 128
ROUNDS = 16
STD = (1e-3, 1e3)
LOG_SCALE = (-0.3, 10.0)

Store = Callable[[Tensor, bool], Tensor]
"""Keys (True) or values, [batch, KV heads, tokens, head size] -> as they are read back."""


@dataclass(frozen=True)
class Statistics:
    """Of a layer, [KV heads, head size] and twice [KV heads, head size, head size], float64, after RoPE.

    ``center`` is the mean key; ``queries`` and ``values`` are second moments, the latter of values that count as much
    as their key's mean squared product with the queries.
    """

    center: Tensor
    queries: Tensor
    values: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor) -> Statistics:
        """All [chunks, heads, tokens, head size]."""
        key, value = key.double(), value.double()
        query = query.double().unflatten(1, (key.shape[1], -1))
        queries = torch.einsum("bhgtd,bhgte->hde", query, query) / query[:, 0, ..., 0].numel()
        weights = torch.einsum("bhtd,hde,bhte->bht", key, queries, key)
        weights = weights / weights.mean((0, 2), keepdim=True) / key[:, 0, :, 0].numel()
        return cls(key.mean((0, 2)), queries, torch.einsum("bht,bhtd,bhte->hde", weights, value, value))

    def rotations(self, per_head: bool) -> KeysValues:
        """OSCAR's, of keys and of values; one for all heads of the layer, as published, or one for each."""
        both = (moment if per_head else moment.mean(0, keepdim=True) for moment in (self.queries, self.values))
        return KeysValues(*map(oscar_rotation, both))


def oscar_rotation(moment: Tensor) -> Tensor:
    """Eigenvectors, mixed by Hadamard's matrix, their columns in bit-reversed order; float32 [..., size, size].

    The size must be a power of two.
    """
    size = moment.shape[-1]
    vectors = torch.linalg.eigh(moment).eigenvectors @ hadamard(size).to(moment)
    n_bits = size.bit_length() - 1
    order = [size - 1 - int(f"{i:0{n_bits}b}"[::-1], 2) for i in range(size)]
    return vectors[..., order].float()


def oscar_int2(x: Tensor, is_key: bool) -> Tensor:
    """Rows clipped at a quantile of their magnitudes, then four levels from the least to the largest of a group."""
    index = int((CLIP_K if is_key else CLIP_V) * x.shape[-1])
    limit = x.abs().sort(-1).values[..., index, None]
    return four_levels(torch.minimum(torch.maximum(x, -limit), limit).unflatten(-1, (-1, _group(x.shape[-1])))).flatten(
        -2
    )


def four_levels(groups: Tensor) -> Tensor:
    low = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - low).clamp_min(1e-8) / 3
    codes = ((groups - low) / scale + 0.5).trunc().clamp(0, 3)
    return codes * scale.half() + low.half()


def oscar_bits(head_size: int) -> float:
    """A scale and a minimum of 16 bits for each group."""
    return 2 + 32 / _group(head_size)


def _group(head_size: int) -> int:
    return min(GROUP, head_size)


def kvarn(n_bits: int) -> Store:
    """Tiles of `TILE` tokens, balanced, then levels from the least to the largest of a channel (K) or a token (V).

    Tokens after the last whole tile stay as they are: they are in the exact tail.
    """

    def store(x: Tensor, is_key: bool) -> Tensor:
        whole = x.shape[2] // TILE * TILE
        tiles = x[:, :, :whole].unflatten(2, (-1, TILE))
        read = _levels(tiles.mT, n_bits).mT if is_key else _levels(tiles, n_bits)
        return torch.cat((read.flatten(2, 3), x[:, :, whole:]), 2)

    return store


def kvarn_bits(n_bits: int, head_size: int) -> float:
    """Three vectors of 16 bits for each tile, mean of K and V: two along its rows, one along its columns."""
    keys, values = 2 * head_size + TILE, head_size + 2 * TILE
    return n_bits + 16 * (keys + values) / 2 / (head_size * TILE)


def _levels(tiles: Tensor, n_bits: int) -> Tensor:
    """[..., rows, columns]: each row has a scale and a minimum, each column a scale."""
    columns, rows = balance(tiles)
    balanced = tiles / columns / rows
    low, largest = balanced.amin(-1, keepdim=True), 2**n_bits - 1
    scale = ((balanced.amax(-1, keepdim=True) - low) / largest).clamp_min(1e-10)
    codes = ((balanced - low) / scale).round().clamp(0, largest)
    return (codes * (rows * scale).half() + (rows * low).half()) * columns.half()


def balance(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of columns and of rows whose quotients have the most even standard deviations that were seen."""
    logs = [torch.zeros_like(tiles[..., :1, :]), torch.zeros_like(tiles[..., :1])]
    best, found = _spread(tiles), [log.exp() for log in logs]
    for _ in range(ROUNDS):
        for axis in (0, 1):
            std = (tiles / logs[0].exp() / logs[1].exp()).std(axis - 2, keepdim=True).clamp(*STD)
            logs[axis] = (logs[axis] + std.log()).clamp(*LOG_SCALE)
        spread = _spread(tiles / logs[0].exp() / logs[1].exp())
        better = spread <= best
        best = torch.where(better, spread, best)
        found = [torch.where(better, log.exp(), scale) for log, scale in zip(logs, found, strict=True)]
    return found[0], found[1]


def _spread(tiles: Tensor) -> Tensor:
    """Largest over smallest standard deviation, of columns and of rows, [..., 1, 1]."""
    both = (tiles.std(axis, keepdim=True) for axis in (-2, -1))
    return sum((std.amax((-2, -1), keepdim=True) / std.amin((-2, -1), keepdim=True).clamp_min(1e-8)) for std in both)


@dataclass(frozen=True)
class Rotated(CacheModel):
    """Keys and values times ``rotations[il]`` [1 or KV heads, head size, head size], through ``store``, and back."""

    rotations: Sequence[KeysValues] = ()
    store: Store = oscar_int2

    def cached(self, k: Tensor, v: Tensor, pair: Pair, il: int, rotated: tuple[bool, bool]) -> KeysValues:
        turns = self.rotations[il]
        return KeysValues(
            self.store(k @ turns.key, True) @ turns.key.mT, self.store(v @ turns.value, False) @ turns.value.mT
        )

    def exact(self, k: Tensor, v: Tensor, pair: Pair, il: int, rotated: tuple[bool, bool]) -> KeysValues | None:
        return None if self.ends is None else KeysValues(k.half().to(k), v.half().to(v))


def in_types(pair: Pair) -> Store:
    """In the cache types of ``pair``."""
    return lambda x, is_key: fake_quantize(x, pair.k if is_key else pair.v, is_key)
