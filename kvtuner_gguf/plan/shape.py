"""What of a model decides the size of its KV cache, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.shapefields import PerLayer, one_or_all, shape_fields

# where layers have windows, a context of at most so many tokens says how much they weigh
MAX_WEIGHED_CTX = 32768


@dataclass(frozen=True)
class LayerShape:
    """One layer: its KV heads with the sizes of their keys and values.

    ``window``: tokens that a sliding window sees, 0 where the layer sees all. ``keeps``: whether it has a cache of its
    own; where not, ``source`` is the layer whose cache it reads, if any. ``latent``: the tensor of K holds V, too.
    ``turned``: whether centers with a span have a table there: RoPE turns the keys, and attention reads the table.
    """

    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    window: int = 0
    keeps: bool = True
    source: int | None = None
    latent: bool = False
    turned: bool = True

    @property
    def kept_k(self) -> int:
        """Values of K that the layer's own cache keeps of a token."""
        return self.n_head_kv * self.head_dim_k if self.keeps else 0

    @property
    def kept_v(self) -> int:
        """Values of V that the layer's own cache keeps of a token."""
        return 0 if self.latent or not self.keeps else self.n_head_kv * self.head_dim_v


@dataclass(frozen=True)
class ModelShape:
    """The fields of `LayerShape` for all layers.

    ``cache``: the layer whose cache each layer reads, itself or another one, None for none; empty where all read their
    own. ``n_ctx``: tokens of the context in which layers are weighed against each other, if some have windows.
    ``turned``: 1 or 0.
    """

    architecture: str
    n_head_kv: tuple[int, ...]
    head_dim_k: PerLayer
    head_dim_v: PerLayer
    fingerprint: str | None = None
    window: PerLayer = 0
    cache: tuple[int | None, ...] = ()
    latent: bool = False
    n_ctx: int = field(default=MAX_WEIGHED_CTX, compare=False)
    turned: PerLayer = 1

    @classmethod
    def of_layers(
        cls,
        architecture: str,
        layers: Sequence[LayerShape],
        fingerprint: str | None = None,
        n_ctx: int = MAX_WEIGHED_CTX,
    ) -> ModelShape:
        every_keeps = all(layer.keeps for layer in layers)
        return cls(
            architecture,
            tuple(layer.n_head_kv for layer in layers),
            one_or_all(layer.head_dim_k for layer in layers),
            one_or_all(layer.head_dim_v for layer in layers),
            fingerprint,
            one_or_all(layer.window for layer in layers),
            () if every_keeps else tuple(il if layer.keeps else layer.source for il, layer in enumerate(layers)),
            any(layer.latent for layer in layers),
            n_ctx,
            one_or_all(int(layer.turned) for layer in layers),
        )

    @property
    def n_layer(self) -> int:
        return len(self.n_head_kv)

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """The layers; those without KV heads keep no cache either."""
        each = map(self._each, (self.head_dim_k, self.head_dim_v, self.window, self.turned))
        numbers = zip(self.n_head_kv, *each, self.cache or range(self.n_layer), strict=True)
        return tuple(self._layer(il, *of_layer) for il, of_layer in enumerate(numbers))

    def _layer(
        self, il: int, n_head_kv: int, k: int, v: int, window: int, turned: int, cache: int | None
    ) -> LayerShape:
        keeps, source = n_head_kv > 0 and cache == il, None if cache == il else cache
        return LayerShape(n_head_kv, k, v, window, keeps, source, self.latent, bool(turned))

    def _each(self, value: PerLayer) -> tuple[int, ...]:
        return (value,) * self.n_layer if isinstance(value, int) else value

    @property
    def sizes_k(self) -> list[int]:
        """Values of the K of a token in each layer, whether it keeps a cache or not."""
        return [layer.n_head_kv * layer.head_dim_k for layer in self.layers]

    @property
    def has_windows(self) -> bool:
        return any(layer.window for layer in self.layers)

    @property
    def has_turned(self) -> bool:
        """Whether centers with a span have a table in some layer."""
        return any(layer.keeps and layer.turned for layer in self.layers)

    def cells(self, context: ContextSize) -> tuple[int, ...]:
        """Cells of each layer in such a context, 0 for a layer without a cache of its own."""
        return tuple(context.cells(layer.window) if layer.keeps else 0 for layer in self.layers)

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Cells of each layer in a context of ``n_ctx`` tokens, reduced by what they have in common.

        1 for every layer with a cache where no layer has a window.
        """
        cells = self.cells(ContextSize(max(self.n_ctx, 1)))
        unit = math.gcd(*cells) or 1
        return tuple(n // unit for n in cells)

    @property
    def n_values(self) -> int:
        """Values that a token has in all caches, by the `weights` of the layers."""
        return self.n_cached(self.weights)

    def n_cached(self, cells: Sequence[int]) -> int:
        """Values of K and V that caches with so many ``cells`` of each layer hold."""
        return sum(n * (layer.kept_k + layer.kept_v) for n, layer in zip(cells, self.layers, strict=True))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; what is out of the ordinary only where it is."""
        data: dict[str, Any] = {
            "architecture": self.architecture,
            "n_layer": self.n_layer,
            "n_head_kv": list(self.n_head_kv),
            "head_dim_k": _to_json(self.head_dim_k),
            "head_dim_v": _to_json(self.head_dim_v),
            "fingerprint": self.fingerprint,
        }
        if self.has_windows:
            data |= {"window": _to_json(self.window), "n_ctx": self.n_ctx}
        if self.cache:
            data["cache"] = list(self.cache)
        if self.latent:
            data["latent"] = True
        if not all(layer.turned for layer in self.layers):
            data["turned"] = _to_json(self.turned)
        return data

    @classmethod
    def from_json(cls, data: object) -> ModelShape:
        """Raises `KvtunerError` naming the value that is wrong."""
        return cls(**shape_fields(data))


def _to_json(value: PerLayer) -> int | list[int]:
    return value if isinstance(value, int) else list(value)
