"""Whether a plan fits a model, and the plan as this very model takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape, scaling_obstacle
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.gguffile.tunable import way_to_a_plan
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan, of_caches
from kvtuner_gguf.plan.shape import ModelShape


def fitted(plan: Plan, headers: list[GgufHeader]) -> Plan:
    """The plan for this very model: layers without a cache carry f16. Raises `KvtunerError` where it does not fit."""
    shape = model_shape(headers)
    if not any(layer.keeps for layer in shape.layers):
        raise KvtunerError("the model has no layer with a KV cache: a plan has no use there")
    if plan.model is not None:
        _check_same_model(plan.model, shape)
    plan.check(shape)
    pairs = of_caches(plan.pairs, shape)
    if shape.latent:
        _check_shared_tensor(pairs)
    if plan.centers is not None and (obstacle := centering_obstacle(headers)):
        raise KvtunerError(f"keys cannot be centered, since this model {obstacle}: tune with --no-center")
    if plan.scales is not None and (obstacle := scaling_obstacle(shape)):
        raise KvtunerError(f"keys cannot be scaled, since this model {obstacle}: tune with --no-center")
    return replace(plan, pairs=pairs, model=shape)


def _check_same_model(tuned: ModelShape, found: ModelShape) -> None:
    differences = (
        ("architecture", tuned.architecture, found.architecture),
        ("layers", tuned.n_layer, found.n_layer),
        ("K head size", tuned.head_dim_k, found.head_dim_k),
        ("V head size", tuned.head_dim_v, found.head_dim_v),
        ("KV heads", tuned.n_head_kv, found.n_head_kv),
        ("tensor fingerprint", tuned.fingerprint or found.fingerprint, found.fingerprint),
    )
    for what, planned, real in differences:
        if planned != real:
            raise KvtunerError(
                f"the plan is for another model: its {what} is {planned}, this model's {real}: {way_to_a_plan(found)}"
            )


def _check_shared_tensor(pairs: Sequence[Pair]) -> None:
    for il, pair in enumerate(pairs):
        if pair.k != pair.v:
            raise KvtunerError(
                f"layer {il}: K type {pair.k} and V type {pair.v} differ, but this model keeps K and V in one tensor: "
                "give both the same type"
            )
