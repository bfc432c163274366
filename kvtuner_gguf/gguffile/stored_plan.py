"""The plan that the metadata of a model carry, or that a file of either kind holds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from kvtuner_gguf.errors import KvtunerError, about, shown
from kvtuner_gguf.gguffile.cursor import Skipped
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.nomodel import cannot_read
from kvtuner_gguf.gguffile.reader import MAGIC, Field, GgufHeader
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.centers import Centers, centers_or_none
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales, scales_or_none
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.vectors import Vectors

PROVENANCE = {
    Keys.VERSION: "version",
    Keys.TEXT_SHA256: "text_sha256",
    Keys.TEXT_TOKENS: "text_tokens",
    Keys.KLD_MEAN: "kld_mean",
}

END_KINDS = {
    Keys.EXACT_FIRST: (GGUFValueType.UINT32, "uint32"),
    Keys.EXACT_LAST: (GGUFValueType.UINT32, "uint32"),
    Keys.EXACT_TYPE: (GGUFValueType.STRING, "text"),
}


def plan_of(headers: list[GgufHeader]) -> Plan | None:
    """The plan in the metadata, or None; raises `KvtunerError` where it is unusable."""
    return plan_in(headers[0], model_shape(headers))


def plan_in(header: GgufHeader, shape: ModelShape) -> Plan | None:
    """The plan in the metadata of a model of this shape, as `plan_of`."""
    if header.get(Keys.TYPE_K) is None and header.get(Keys.TYPE_V) is None:
        return None
    with about(header.path):
        if header.find(Keys.CENTER_V) is not None:
            raise KvtunerError(
                f"{header.name(Keys.CENTER_V)} is no longer used, since centers give values nothing: "
                "annotate the model again"
            )
        names_k, names_v = (_names(header, side, shape.n_layer) for side in ("K", "V"))
        pairs = tuple(Pair(k, v) for k, v in zip(names_k, names_v, strict=True))
        centers = _centers(header, shape.sizes_k)
        scales = scales_or_none(_vectors(header, Keys.SCALE_K, Scales, shape.sizes_k))
        return Plan(pairs, shape, _provenance(header), centers, _ends(header), scales)


def _provenance(header: GgufHeader) -> dict[str, object]:
    found = {name: header.get(key) for key, name in PROVENANCE.items() if header.get(key) is not None}
    spread = {field.name: header.get(Keys.KEY_SPREAD.format(field=field.name)) for field in fields(KeySpread)}
    if any(values is not None for values in spread.values()):
        found["keys"] = spread
    return found


def _centers(header: GgufHeader, sizes: list[int]) -> Centers | None:
    """The centers, in the checks and words of `kvtuner_plan_from_gguf` in ``cpp/plan/kvtuner-plan-gguf.cpp``."""
    return centers_or_none(_vectors(header, Keys.CENTER_K, Centers, sizes), _center_span(header))


def _vectors(header: GgufHeader, key: str, kind: type[Vectors], sizes: list[int]) -> list[bytes]:
    found = header.find(key)
    if found is None:
        return []
    if found.element != GGUFValueType.FLOAT32:
        raise KvtunerError(f"{header.name(key)} is no list of float32 values: annotate the model again")
    values = found.value
    if isinstance(values, Skipped):  # no number in it, and its length tells more often what is wrong
        values = np.broadcast_to(np.float32(np.nan), values.count)
    return kind.from_flat(np.asarray(values, np.float32), sizes)


def _center_span(header: GgufHeader) -> object:
    found = header.find(Keys.CENTER_SPAN)
    if found is None:
        return None
    if found.kind != GGUFValueType.UINT32:
        raise KvtunerError(f"{header.name(Keys.CENTER_SPAN)} is no uint32: annotate the model again")
    return found.value


def _ends(header: GgufHeader) -> Ends | None:
    """The exact ends, in the checks and words of `kvtuner_ends_from_gguf` in ``cpp/plan/kvtuner-plan-ends.cpp``."""
    if all(header.find(key) is None for key in END_KINDS):
        return None
    fields = [_end_field(header, key) for key in END_KINDS]
    for (key, (kind, what)), field in zip(END_KINDS.items(), fields, strict=True):
        if field.kind != kind:
            raise KvtunerError(f"{header.name(key)} is no {what}: annotate the model again")
    first, last, name = (field.value for field in fields)
    return Ends(first, last, _text_start(name))


def _end_field(header: GgufHeader, key: str) -> Field:
    field = header.find(key)
    if field is None:
        raise KvtunerError(
            f"{header.name(key)} is missing while others of the ends are there: annotate the model again"
        )
    return field


def _names(header: GgufHeader, side: str, n_layer: int) -> list[str]:
    """The type names of one side, in the checks and words of `types_from_key` in ``cpp/plan/kvtuner-plan-gguf.cpp``."""
    key = {"K": Keys.TYPE_K, "V": Keys.TYPE_V}[side]
    found, name = header.find(key), header.name(key)
    if found is None:
        raise KvtunerError(f"{name} is missing while its counterpart is there: annotate the model again")
    if found.kind == GGUFValueType.STRING:
        return [_type_name(found.value, 0, side)] * n_layer
    if found.kind != GGUFValueType.ARRAY:
        raise KvtunerError(f"{name} has the value {shown(found.value)}, no list of names: annotate the model again")
    n_found = found.value.count if isinstance(found.value, Skipped) else len(found.value)
    if n_found != n_layer:
        raise KvtunerError(f"{name} has {n_found} entries, the model {n_layer} layers: annotate the model again")
    if found.element != GGUFValueType.STRING:
        raise KvtunerError(f"layer 0: {name} holds no name: annotate the model again")
    return [_type_name(text, il, side) for il, text in enumerate(found.value)]


def _type_name(text: str | Skipped, il: int, side: str) -> str:
    try:
        return cache_type(_text_start(text), f" for {side}").name
    except KvtunerError as err:
        raise KvtunerError(f"layer {il}: {err}") from err


def _text_start(text: str | Skipped) -> str:
    """A text, or how one starts that was too long to keep: longer than any name."""
    return text.start if isinstance(text, Skipped) else text


def is_gguf(path: Path) -> bool:
    """Whether there is a GGUF file at ``path``, or what is called so; raises `KvtunerError` where none can be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
    except OSError as err:
        raise cannot_read(path, err) from err


def load_plan(path: Path) -> tuple[Plan | None, str]:
    """The plan in a GGUF file or a JSON file, and where it comes from: ``gguf`` or ``config``."""
    if not is_gguf(path):
        return Plan.load(path), "config"
    return plan_of(read_model(path)), "gguf"


def given_plan(path: Path) -> Plan:
    """The plan in a file of either kind; raises `KvtunerError` where it is a model without one."""
    plan, _ = load_plan(path)
    if plan is None:
        raise KvtunerError(f"{path}: no plan in it: annotate it, or give a plan file")
    return plan
