"""Which models can be tuned, as their metadata tell it, and what is the way to a plan of the others."""

from __future__ import annotations

from kvtuner_gguf.gguffile.architectures import UNCAPTURED
from kvtuner_gguf.plan.shape import ModelShape

MAKE = "make a plan with 'kvtuner-gguf plan'"


def tuning_obstacle(shape: ModelShape) -> str | None:
    """Why no model of ``shape`` is tuned, and what to do; None where one can be."""
    if not any(layer.keeps for layer in shape.layers):
        return f"models of the architecture {shape.architecture} keep no KV cache: there is nothing to tune"
    why = UNCAPTURED.get(shape.architecture)
    return why and f"the architecture {shape.architecture} {why}, and cannot be tuned: {MAKE}"


def way_to_a_plan(shape: ModelShape) -> str:
    """What to do for a plan of a model of ``shape``, which has a KV cache."""
    return MAKE if tuning_obstacle(shape) else "tune this model"
