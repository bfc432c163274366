"""What the files of all stages have in common: schema, model and provenance around the entries of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.shape import ModelShape

T = TypeVar("T")


def stage_to_json(
    schema: str, model: ModelShape, provenance: Mapping[str, Any], body: Mapping[str, Any]
) -> dict[str, Any]:
    """The file of a stage: its schema and model, ``body``, and where it comes from."""
    return {"schema": schema, "model": model.to_json(), **body, "provenance": dict(provenance)}


def stage_from_json(data: object, schema: str) -> tuple[ModelShape, Mapping[str, Any], Mapping[str, Any]]:
    """Model, provenance and the whole of a stage's file.

    Raises `KvtunerError` where it is no file of ``schema``.
    """
    if not isinstance(data, Mapping) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
        raise KvtunerError(f"the schema is {found!r}, not {schema!r}: run the stage that writes it again")
    provenance = data.get("provenance", {})
    if not isinstance(provenance, Mapping):
        raise KvtunerError("'provenance' must be an object: run the stage again")
    return ModelShape.from_json(data.get("model")), provenance, data


def layers_from_json(layers: object, n_layer: int, parse: Callable[[Any], T]) -> tuple[T, ...]:
    """``parse`` of the entry of each layer; errors name the layer."""
    if not isinstance(layers, list) or len(layers) != n_layer:
        found = len(layers) if isinstance(layers, list) else type(layers).__name__
        raise KvtunerError(f"'layers' has {found} entries, the model {n_layer} layers: run the stage again")
    return entries_from_json(layers, parse, "layer {}", "run the stage again")


def entries_from_json(entries: list[Any], parse: Callable[[Any], T], name: str, remedy: str) -> tuple[T, ...]:
    """``parse`` of each of ``entries``; errors call it ``name``, with its number in place of the braces."""
    parsed = []
    for i, entry in enumerate(entries):
        try:
            parsed.append(parse(entry))
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError, KvtunerError) as err:
            raise KvtunerError(f"{name.format(i)} is damaged ({err}): {remedy}") from err
    return tuple(parsed)
