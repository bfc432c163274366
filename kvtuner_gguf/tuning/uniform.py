"""One pair in all layers, judged like the plans of a front: what a search has to win over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.front import Point
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import of_caches
from kvtuner_gguf.plan.shape import ModelShape


def uniform_pairs(names: Iterable[str]) -> list[Pair]:
    """A pair for each number of bits that the quantized types of ``names`` have: the smallest type, for K and V."""
    smallest: dict[int, str] = {}
    for name in sorted(names, key=lambda name: cache_type(name).bits_per_value):
        if cache_type(name).is_quantized:
            smallest.setdefault(cache_type(name).payload_bits, name)
    return [Pair(name, name) for name in smallest.values()]


def uniform_points(
    loss: Callable[[Sequence[Pair]], float], names: Iterable[str], shape: ModelShape
) -> tuple[Point, ...]:
    """The `uniform_pairs` of ``names`` in a model of this shape, by rising bits, each with its ``loss``."""
    plans = (of_caches([pair] * shape.n_layer, shape) for pair in uniform_pairs(names))
    return tuple(Point(pairs, loss(pairs)) for pairs in plans)
