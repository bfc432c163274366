"""The entries of a plan's layers in JSON, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.plan.shapefields import MAX_LAYERS, is_count

T = TypeVar("T")


def ordered_layers(layers: object) -> list[Mapping[str, Any]]:
    """The entries of all layers, from layer 0 on; raises `KvtunerError` naming what is wrong with their numbers."""
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


def pair_in(entry: Mapping[str, Any], il: int) -> Pair:
    """The pair of layer ``il``; raises `KvtunerError` naming the layer."""
    try:
        sides: list[Any] = [entry.get("k"), entry.get("v")]
        return Pair(*sides)
    except KvtunerError as err:
        raise KvtunerError(f"layer {il}: {err}") from err


def center_in(entry: Mapping[str, Any], il: int) -> bytes:
    """The center of layer ``il``, empty for none; raises `KvtunerError` naming the layer."""
    if entry.get("center_v") is not None:  # of an earlier version
        raise KvtunerError(f"layer {il}: center_v is no longer used, since centers give values nothing: remove it")
    return Centers.decode(entry.get("center_k"), il)


def scale_in(entry: Mapping[str, Any], il: int) -> bytes:
    """The scale of layer ``il``, as `center_in`."""
    return Scales.decode(entry.get("scale_k"), il)
