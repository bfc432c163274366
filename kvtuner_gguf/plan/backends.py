"""Which pairs of cache types a back end of the built llama.cpp runs fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape


@dataclass(frozen=True)
class Backend:
    """The types that it runs, and whether K and V of a layer may differ."""

    names: tuple[str, ...]
    mixed: bool

    def pairs(self) -> tuple[Pair, ...]:
        if self.mixed:
            return tuple(Pair(k, v) for k, v in product(self.names, repeat=2))
        return tuple(Pair(name, name) for name in self.names)

    def fitting(self, shape: ModelShape) -> Backend:
        """Without the types whose blocks do not divide the head sizes of ``shape``, and mixed where K and V are two.

        Raises `KvtunerError` where none is left.
        """
        names = fitting_names(self.names, shape)
        if not names:
            raise KvtunerError(
                f"no block of {', '.join(self.names)} divides heads of {' and '.join(map(str, _head_sizes(shape)))} "
                "values: name other types with --candidates"
            )
        return Backend(names, self.mixed and not shape.latent)


def fitting_names(names: Iterable[str], shape: ModelShape) -> tuple[str, ...]:
    """Those of the types ``names`` whose blocks divide the head sizes of ``shape``."""
    sizes = _head_sizes(shape)
    return tuple(n for n in names if not any(size % cache_type(n).block_size for size in sizes))


def _head_sizes(shape: ModelShape) -> list[int]:
    """Of keys and values in layers that keep a cache."""
    return sorted({size for layer in shape.layers if layer.keeps for size in (layer.head_dim_k, layer.head_dim_v)})


# the types of llama.cpp without patches
OF_BASE = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
DEFAULT_BACKEND = "cpu"
BACKENDS = {
    "cpu": Backend((*OF_BASE, "q3_nl", "q2_nl"), mixed=True),
    "cuda": Backend(("f16", "q8_0", "q5_0", "q4_0", "iq4_nl", "q3_nl", "q2_nl"), mixed=True),
    "metal": Backend((*OF_BASE, "q3_nl", "q2_nl"), mixed=True),
    "vulkan": Backend(OF_BASE, mixed=True),
    "portable": Backend(("f16", "q8_0", "q4_0"), mixed=False),
}


def backend(name: str) -> Backend:
    """The back end called ``name``; raises `KvtunerError` for any other name."""
    if name not in BACKENDS:
        raise KvtunerError(f"unknown back end {name!r}: use one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def of_types(names: Sequence[str]) -> Backend:
    """Any pair of the types ``names``; raises `KvtunerError` where one is unknown or given twice."""
    for name in names:
        cache_type(name)
    if not names or len(set(names)) != len(names):
        raise KvtunerError(f"the candidates {','.join(names)!r}: name each type once, at least one")
    return Backend(tuple(sorted(names, key=list(CACHE_TYPES).index)), mixed=True)


def chosen_backend(name: str | None, candidates: Sequence[str], offered: str = DEFAULT_BACKEND) -> Backend:
    """That of the name, or of the types ``candidates``, or else the one ``offered``.

    Raises `KvtunerError` where both or unknown ones are named.
    """
    if name and candidates:
        raise KvtunerError("--backend and --candidates both say which types to use: give one of them")
    return of_types(candidates) if candidates else backend(name or offered)


def running_fast(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """The back ends that run all ``pairs`` fast."""
    wanted = set(pairs)
    return tuple(name for name, one in BACKENDS.items() if name != "portable" and wanted <= set(one.pairs()))
