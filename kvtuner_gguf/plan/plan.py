"""A plan: the K and V cache type of every layer, with the model it is for and where it comes from.

``configs/plan.schema.json`` describes the same JSON for other programs. ``cpp/plan/kvtuner-plan-json.cpp`` makes the
same checks in the same order with the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.files import artifact
from kvtuner_gguf.plan import centers as centers_module
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.shapefields import MAX_LAYERS, is_count

T = TypeVar("T")

SCHEMA = "kvtuner.plan/1"


def _per_value(n_bits: float, shape: ModelShape) -> float:
    """``n_bits`` of all layers, weighed as `ModelShape.n_values`, as bits per cached value."""
    if not shape.n_values:
        raise KvtunerError("the model has no layer with a KV cache: a plan has no use there")
    return n_bits / shape.n_values


@dataclass(frozen=True)
class Plan:
    """``pairs[il]`` is the pair of layer ``il``. Raises `KvtunerError` where it does not fit ``model``."""

    pairs: tuple[Pair, ...]
    model: ModelShape | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    centers: Centers | None = None
    ends: Ends | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.pairs) <= MAX_LAYERS:
            raise KvtunerError(f"a plan has 1 to {MAX_LAYERS} layers, not {len(self.pairs)}: tune the model again")
        if self.centers is not None and self.centers.n_layer != len(self.pairs):
            raise KvtunerError(
                f"the plan has {len(self.pairs)} layers and centers of {self.centers.n_layer}: tune the model again"
            )
        if self.model is not None:
            self.check(self.model)

    @classmethod
    def uniform(cls, pair: Pair, n_layer: int, centers: Centers | None = None) -> Plan:
        return cls((pair,) * n_layer, centers=centers)

    def without_centers(self) -> Plan:
        return replace(self, centers=None)

    def without_ends(self) -> Plan:
        return replace(self, ends=None)

    @property
    def n_layer(self) -> int:
        return len(self.pairs)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the types and centers of all layers and the ends: equal plans, equal fingerprints.

        `kvtuner_plan_fingerprint` in ``cpp/plan/kvtuner-fingerprint.cpp`` is the same. Whatever else a plan comes to
        hold of a layer is appended to the layer's entry, so that plans without it keep theirs; the ends follow all.
        """
        entries = [f"{il}:{pair}{self._center_digest(il)}" for il, pair in enumerate(self.pairs)]
        ends = [] if self.ends is None else [f"ends={self.ends}"]
        return f"{fnv1a_64(';'.join((SCHEMA, *entries, *ends)).encode()):016x}"

    def _center_digest(self, il: int) -> str:
        values = None if self.centers is None else self.centers.array_k(il)
        return "" if values is None else f";center_k={fnv1a_64(values.astype('<f4').tobytes()):016x}"

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
        if self.centers is not None:
            self.centers.check(shape.sizes_k)

    def bytes_per_token(self, shape: ModelShape) -> int:
        """Bytes that one token takes in the caches of all layers."""
        return self._sum(shape, (1,) * shape.n_layer)

    def n_bytes(self, shape: ModelShape, context: ContextSize) -> int:
        """Bytes that the library allocates for the K and V of all layers in such a context, with FlashAttention."""
        return self._sum(shape, shape.cells(context))

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

        Without a shape all layers and both sides weigh the same.
        """
        shape = shape or self.model
        if shape is None:
            return sum(pair.bits_per_value for pair in self.pairs) / self.n_layer
        return _per_value(8.0 * self.size(shape), shape)

    def payload_bits(self, shape: ModelShape | None = None) -> float:
        """Mean bits of the codes alone per cached value, as the KVTuner paper counts; weighed as `bits_per_value`."""
        shape = shape or self.model
        if shape is None:
            return sum(pair.payload_bits for pair in self.pairs) / self.n_layer
        self.check(shape)
        n_bits = 0.0
        for weight, (k, v), layer in zip(shape.weights, (p.types for p in self.pairs), shape.layers, strict=True):
            n_bits += weight * (layer.kept_k * k.payload_bits + layer.kept_v * v.payload_bits)
        return _per_value(n_bits, shape)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"schema": SCHEMA}
        if self.model is not None:
            data["model"] = self.model.to_json()
        data["layers"] = [self._layer_to_json(il) for il in range(self.n_layer)]
        if self.ends is not None:
            data["ends"] = self.ends.to_json()
        if self.provenance:
            data["provenance"] = dict(self.provenance)
        return data

    def _layer_to_json(self, il: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"layer": il, "k": self.pairs[il].k, "v": self.pairs[il].v}
        if self.centers is not None and self.centers.k[il]:
            entry["center_k"] = centers_module.encode(self.centers.k[il])
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
        layers = _ordered_layers(data.get("layers"))
        return cls(
            pairs=tuple(_parse_pair(il, entry) for il, entry in enumerate(layers)),
            model=None if model is None else ModelShape.from_json(model),
            provenance=provenance,
            centers=centers_module.centers_or_none(_parse_center(il, entry) for il, entry in enumerate(layers)),
            ends=Ends.from_json(data.get("ends")),
        )

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan from a JSON file; every error names the file."""
        return artifact.load(path, cls.from_json, "plan")

    def save(self, path: Path) -> None:
        artifact.save(path, self.to_json())


def fnv1a_64(data: bytes) -> int:
    """The 64-bit FNV-1a hash (Fowler, Noll, Vo)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def _ordered_layers(layers: object) -> list[Mapping[str, Any]]:
    if not isinstance(layers, list) or not layers:
        raise KvtunerError("'layers' must be a list of {layer, k, v}: see configs/plan.schema.json")
    if len(layers) > MAX_LAYERS:
        raise KvtunerError(f"'layers' has {len(layers)} entries, more than {MAX_LAYERS}: tune the model again")
    return in_order((_number_of(entry), entry) for entry in layers)


def _number_of(entry: object) -> int:
    il = entry.get("layer") if isinstance(entry, Mapping) else None
    if not is_count(il):
        raise KvtunerError(f"a layer entry has the number {shown(il)}: give a whole number from 0")
    return il


def in_order(numbered: Iterable[tuple[int, T]]) -> list[T]:
    """The entries of all layers, from layer 0 on.

    Raises `KvtunerError` naming the layer that is given twice or is missing.
    """
    entries: dict[int, T] = {}
    for il, entry in numbered:
        if il in entries:
            raise KvtunerError(f"layer {il} is given twice: keep one entry")
        entries[il] = entry
    missing = next((il for il in range(len(entries)) if il not in entries), None)
    if missing is not None:
        raise KvtunerError(f"layer {missing} is missing of {len(entries)}: number the layers from 0 without a gap")
    return [entries[il] for il in range(len(entries))]


def _parse_pair(il: int, entry: Mapping[str, Any]) -> Pair:
    try:
        sides: list[Any] = [entry.get("k"), entry.get("v")]
        return Pair(*sides)
    except KvtunerError as err:
        raise KvtunerError(f"layer {il}: {err}") from err


def _parse_center(il: int, entry: Mapping[str, Any]) -> bytes:
    if entry.get("center_v") is not None:  # of an earlier version
        raise KvtunerError(f"layer {il}: center_v is no longer used, since centers give values nothing: remove it")
    return centers_module.decode(entry.get("center_k"), il)
