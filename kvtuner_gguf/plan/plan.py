"""A plan: the K and V cache type of every layer, with the model it is for and where it comes from.

``configs/plan.schema.json`` describes the same JSON for other programs. ``cpp/plan/kvtuner-plan-json.cpp`` makes the
same checks in the same order with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.files import artifact
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.centers import Centers, centers_or_none
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.fingerprint import fingerprint
from kvtuner_gguf.plan.layerlist import center_in, ordered_layers, pair_in, scale_in
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.scales import Scales, scales_or_none
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.shapefields import MAX_LAYERS
from kvtuner_gguf.plan.vectors import encode

SCHEMA = "kvtuner.plan/1"


def of_caches(pairs: Sequence[Pair], shape: ModelShape) -> tuple[Pair, ...]:
    """``pairs`` with f16 for layers that have no cache of their own."""
    return tuple(pair if layer.keeps else F16 for pair, layer in zip(pairs, shape.layers, strict=True))


def _per_value(n_bits: float, n_values: int) -> float:
    """``n_bits`` of ``n_values`` cached values as bits of each."""
    if not n_values:
        raise KvtunerError("the model has no layer with a KV cache: a plan has no use there")
    return n_bits / n_values


@dataclass(frozen=True)
class Plan:
    """``pairs[il]`` is the pair of layer ``il``. Raises `KvtunerError` where it does not fit ``model``."""

    pairs: tuple[Pair, ...]
    model: ModelShape | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    centers: Centers | None = None
    ends: Ends | None = None
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.pairs) <= MAX_LAYERS:
            raise KvtunerError(f"a plan has 1 to {MAX_LAYERS} layers, not {len(self.pairs)}: tune the model again")
        for vectors in (self.centers, self.scales):
            if vectors is not None and vectors.n_layer != len(self.pairs):
                raise KvtunerError(
                    f"the plan has {len(self.pairs)} layers and {vectors.what}s of {vectors.n_layer}: "
                    "tune the model again"
                )
        if self.model is not None:
            self.check(self.model)

    @classmethod
    def uniform(cls, pair: Pair, n_layer: int, centers: Centers | None = None) -> Plan:
        return cls((pair,) * n_layer, centers=centers)

    def without_centers(self) -> Plan:
        return replace(self, centers=None)

    def without_scales(self) -> Plan:
        return replace(self, scales=None)

    def without_ends(self) -> Plan:
        """Without the scales, too, where there are ends: they are for what is not read exactly."""
        return self if self.ends is None else replace(self, ends=None, scales=None)

    @property
    def n_layer(self) -> int:
        return len(self.pairs)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over types, centers with their span, scales and ends: equal plans, equal fingerprints."""
        return fingerprint(SCHEMA, self.pairs, self.centers, self.scales, self.ends)

    def check(self, shape: ModelShape) -> None:
        """Raise `KvtunerError` unless every layer's types can be allocated in a model of this shape."""
        if self.n_layer != shape.n_layer:
            raise KvtunerError(
                f"the plan has {self.n_layer} layers, the model {shape.n_layer}: "
                "use a plan that was tuned for this model"
            )
        for il, (pair, layer) in enumerate(zip(self.pairs, shape.layers, strict=True)):
            for side, name, size in (("K", pair.k, layer.head_dim_k), ("V", pair.v, layer.head_dim_v)):
                if layer.keeps and size % cache_type(name).block_size:
                    raise KvtunerError(
                        f"layer {il}: {side} type {name} has blocks of {cache_type(name).block_size} values, "
                        f"which do not divide the head size {size}: use f16 there"
                    )
            if self.ends is not None:
                self.ends.check(il, pair, layer)
        for vectors in (self.centers, self.scales):
            if vectors is not None:
                vectors.check(shape.sizes_k)

    def bytes_per_token(self, shape: ModelShape) -> int:
        """Bytes that one token takes in the caches of all layers."""
        return self._sum(shape, (1,) * shape.n_layer)

    def n_bytes(self, shape: ModelShape, context: ContextSize) -> int:
        """Bytes that the library allocates for the K and V of all layers in such a context, with FlashAttention.

        `ends_bytes` are among them.
        """
        return self._sum(shape, shape.cells(context)) + self.ends_bytes(shape, context)

    def ends_bytes(self, shape: ModelShape, context: ContextSize) -> int:
        """Bytes of the exact ends alone: `ContextSize.exact_rows` in each layer that has ends."""
        return context.exact_rows(self._n_end_positions) * self._end_row_bytes(shape)

    def centers_bytes(self, shape: ModelShape, context: ContextSize) -> int:
        """Bytes of the tables of turned centers, which `n_bytes` leaves out: one for all sequences of a context.

        The library makes them for layers whose centers turn, on the CPU and on CUDA; elsewhere a layer has one center.
        """
        if self.centers is None:
            return 0
        cells = context.cells_of_sequence
        turned = (il for il, layer in enumerate(shape.layers) if layer.keeps and layer.turned)
        return sum(self.centers.table_bytes(il, cells) for il in turned)

    @property
    def _n_end_positions(self) -> int:
        return 0 if self.ends is None else self.ends.n_positions

    def _end_row_bytes(self, shape: ModelShape) -> int:
        """Bytes of the exact K and V of one position in all layers; 0 without ends."""
        ends = self.ends
        if ends is None:
            return 0
        return sum(ends.row_bytes(pair, layer) for pair, layer in zip(self.pairs, shape.layers, strict=True))

    def size(self, shape: ModelShape) -> int:
        """Bytes of all layers by their `ModelShape.weights`: bytes per token where no layer has a window."""
        return self._sum(shape, shape.weights)

    def _sum(self, shape: ModelShape, cells: Sequence[int]) -> int:
        self.check(shape)
        return sum(
            n * (cache_type(pair.k).row_bytes(layer.kept_k) + cache_type(pair.v).row_bytes(layer.kept_v))
            for n, pair, layer in zip(cells, self.pairs, shape.layers, strict=True)
        )

    def bits_per_value(self, shape: ModelShape | None = None) -> float:
        """Mean true bits per cached value, in a context of ``shape.n_ctx`` tokens where layers have windows.

        Without a shape all layers and both sides weigh the same. Exact ends and tables of centers do not count: see
        `bits_with_ends`.
        """
        shape = shape or self.model
        if shape is None:
            return sum(pair.bits_per_value for pair in self.pairs) / self.n_layer
        return _per_value(8.0 * self.size(shape), shape.n_values)

    def bits_with_ends(self, shape: ModelShape, n_ctx: int) -> float:
        """Mean true bits per cached value of one sequence in a context of ``n_ctx`` tokens, exact ends included.

        What the caches of all layers take, the rows of first and last positions, and the tables of turned centers, over
        the values of the caches. The rows of a ubatch, which a context keeps once for all sequences, count in `n_bytes`
        alone.
        """
        cells = shape.cells(ContextSize(n_ctx))
        n_bytes = self._sum(shape, cells) + self._n_end_positions * self._end_row_bytes(shape)
        n_bytes += self.centers_bytes(shape, ContextSize(n_ctx))
        return _per_value(8.0 * n_bytes, shape.n_cached(cells))

    def payload_bits(self, shape: ModelShape | None = None) -> float:
        """Mean bits of the codes alone per cached value, as the KVTuner paper counts; weighed as `bits_per_value`."""
        shape = shape or self.model
        if shape is None:
            return sum(pair.payload_bits for pair in self.pairs) / self.n_layer
        self.check(shape)
        n_bits = 0.0
        for weight, (k, v), layer in zip(shape.weights, (p.types for p in self.pairs), shape.layers, strict=True):
            n_bits += weight * (layer.kept_k * k.payload_bits + layer.kept_v * v.payload_bits)
        return _per_value(n_bits, shape.n_values)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"schema": SCHEMA}
        if self.model is not None:
            data["model"] = self.model.to_json()
        data["layers"] = [self._layer_to_json(il) for il in range(self.n_layer)]
        if self.centers is not None and self.centers.span is not None:
            data["center_span"] = self.centers.span
        if self.ends is not None:
            data["ends"] = self.ends.to_json()
        if self.provenance:
            data["provenance"] = dict(self.provenance)
        return data

    def _layer_to_json(self, il: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"layer": il, "k": self.pairs[il].k, "v": self.pairs[il].v}
        for key, vectors in (("center_k", self.centers), ("scale_k", self.scales)):
            if vectors is not None and vectors.k[il]:
                entry[key] = encode(vectors.k[il])
        return entry

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """Raises `KvtunerError` naming the layer and the value that is wrong."""
        if not isinstance(data, Mapping):
            raise KvtunerError("a plan is a JSON object with 'schema' and 'layers': see configs/plan.schema.json")
        if data.get("schema") != SCHEMA:
            raise KvtunerError(
                f"the plan's schema is {shown(data.get('schema'))}, not '{SCHEMA}': tune with this version"
            )
        provenance = data.get("provenance", {})
        if not isinstance(provenance, Mapping):
            raise KvtunerError("'provenance' must be an object: remove it or tune again")
        model = data.get("model")
        layers = ordered_layers(data.get("layers"))
        return cls(
            pairs=tuple(pair_in(entry, il) for il, entry in enumerate(layers)),
            model=None if model is None else ModelShape.from_json(model),
            provenance=provenance,
            centers=centers_or_none((center_in(entry, il) for il, entry in enumerate(layers)), data.get("center_span")),
            scales=scales_or_none(scale_in(entry, il) for il, entry in enumerate(layers)),
            ends=Ends.from_json(data.get("ends")),
        )

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan from a JSON file; every error names the file."""
        return artifact.load(path, cls.from_json, "plan")

    def save(self, path: Path) -> None:
        artifact.save(path, self.to_json())
