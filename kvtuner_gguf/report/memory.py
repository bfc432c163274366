"""What caches take in contexts of some lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvtuner_gguf.plan.backends import fitting_names
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan, of_caches
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.table import Column, print_table

# tokens of the contexts
LENGTHS = (4096, 32768, 131072)
_COMPARED = ("f16", "q8_0")


@dataclass(frozen=True)
class CacheSize:
    """``n_bytes`` of one sequence for each of `LENGTHS`, with exact ends and tables of turned centers."""

    name: str
    n_bytes: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": {f"{n_ctx}": n for n_ctx, n in zip(LENGTHS, self.n_bytes, strict=True)}}


def cache_sizes(plan: Plan, shape: ModelShape) -> list[CacheSize]:
    """Of f16 and q8_0, where heads can have it, and of ``plan``."""
    names = fitting_names(_COMPARED, shape)
    uniform = {name: Plan(of_caches([Pair(name, name)] * shape.n_layer, shape)) for name in names}
    return [_size(name, made, shape) for name, made in {**uniform, "plan": plan}.items()]


def _size(name: str, plan: Plan, shape: ModelShape) -> CacheSize:
    contexts = [ContextSize(n_ctx) for n_ctx in LENGTHS]
    return CacheSize(name, tuple(plan.n_bytes(shape, one) + plan.centers_bytes(shape, one) for one in contexts))


def print_cache_sizes(plan: Plan, shape: ModelShape) -> None:
    """Print MiB by the tokens of a context to stdout."""
    lengths = [
        Column(f"{n_ctx // 1024}k tokens", lambda size, i=i: f"{size.n_bytes[i] / 2**20:.1f}")
        for i, n_ctx in enumerate(LENGTHS)
    ]
    columns = (Column("MiB", lambda size: size.name), *lengths)
    print_table(columns, cache_sizes(plan, shape), "memory of one sequence, exact ends and tables of centers included")
