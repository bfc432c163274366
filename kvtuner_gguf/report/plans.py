"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

from typing import Any

from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import ENDS_CTX, has_ends
from kvtuner_gguf.plan.pairs import F16
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.layers import pair_lines, ranges


def plan_summary(plan: Plan) -> str:
    """One line per distinct pair with its layers, then the size."""
    lines = pair_lines(dict(enumerate(plan.pairs)))
    size = f"{plan.bits_per_value():.4f} bits per value"
    if plan.model is not None:
        per_token, f16 = plan.bytes_per_token(plan.model), f16_bytes_per_token(plan.model)
        size += f", {per_token} bytes per token (f16 {f16})"
        if plan.model.has_windows:
            mib, f16_mib = (n / 2**20 for n in bytes_in_context(plan, plan.model))
            size += f", {mib:.2f} MiB for {plan.model.n_ctx} tokens (f16 {f16_mib:.2f})"
    lines += [*_scale_lines(plan), *_center_lines(plan), *_ends_lines(plan), *_beside_lines(plan)]
    return "\n".join([*lines, f"{size}, fingerprint {plan.fingerprint}"])


def _is_centered(plan: Plan, il: int) -> bool:
    return plan.centers is not None and bool(plan.centers.k[il])


def _is_scaled(plan: Plan, il: int) -> bool:
    return plan.scales is not None and bool(plan.scales.k[il])


def _center_lines(plan: Plan) -> list[str]:
    centered = [il for il in range(plan.n_layer) if _is_centered(plan, il)]
    if plan.centers is None or not centered:
        return []
    text = f"keys centered in layers {ranges(centered)}"
    if plan.centers.span is None:
        return [text]
    text += f", turned every {plan.centers.span} positions"
    if plan.model is None:
        return [text]
    return [f"{text} ({_centers_bytes(plan, plan.model) / 2**20:.2f} MiB for {ENDS_CTX} tokens)"]


def _scale_lines(plan: Plan) -> list[str]:
    scaled = [il for il in range(plan.n_layer) if _is_scaled(plan, il)]
    return [f"keys scaled in layers {ranges(scaled)}"] if scaled else []


def _ends_lines(plan: Plan) -> list[str]:
    ends = plan.ends
    if ends is None:
        return []
    text = f"exact ends: {ends.first} first and {ends.last} last positions in {ends.type}"
    if plan.model is None:
        return [text]
    ils = [il for il, pair in enumerate(plan.pairs) if has_ends(pair, plan.model.layers[il])]
    return [f"{text}, layers {ranges(ils)}" if ils else f"{text}, in no layer of this model"]


def _beside_lines(plan: Plan) -> list[str]:
    """The size with exact ends and tables of turned centers, where the plan has any."""
    if plan.model is None:
        return []
    n_bytes = _ends_bytes(plan, plan.model) + _centers_bytes(plan, plan.model)
    bits = plan.bits_with_ends(plan.model, ENDS_CTX)
    line = f"with them {bits:.4f} bits per value for {ENDS_CTX} tokens, {n_bytes / 2**20:.2f} MiB more"
    return [line] if n_bytes else []


def _ends_bytes(plan: Plan, shape: ModelShape) -> int:
    """What exact ends take in a context of one sequence."""
    return plan.ends_bytes(shape, ContextSize(ENDS_CTX))


def _centers_bytes(plan: Plan, shape: ModelShape) -> int:
    """What the tables of turned centers take there."""
    return plan.centers_bytes(shape, ContextSize(ENDS_CTX))


def _has_ends(plan: Plan, il: int) -> bool:
    """Whether layer ``il`` keeps exact rows; without a model whether it would if it sees all positions."""
    if plan.ends is None:
        return False
    if plan.model is None:
        return any(side.is_quantized for side in plan.pairs[il].types)
    return has_ends(plan.pairs[il], plan.model.layers[il])


def ends_to_json(plan: Plan) -> dict[str, Any] | None:
    """The ends of ``plan``; with its model ``n_ctx``, ``bytes`` of the ends and ``bits_per_value``, too.

    The bits are those of a context of ``n_ctx`` tokens with the ends and tables of turned centers.
    """
    if plan.ends is None:
        return None
    data = plan.ends.to_json()
    if plan.model is not None:
        bits, n_bytes = plan.bits_with_ends(plan.model, ENDS_CTX), _ends_bytes(plan, plan.model)
        data |= {"n_ctx": ENDS_CTX, "bits_per_value": bits, "bytes": n_bytes}
    return data


def f16_bytes_per_token(shape: ModelShape) -> int:
    """What a model takes per token without a plan."""
    return _in_f16(shape).bytes_per_token(shape)


def bytes_in_context(plan: Plan, shape: ModelShape) -> tuple[int, int]:
    """What is allocated for ``shape.n_ctx`` tokens of one sequence, with the plan and without."""
    context = ContextSize(shape.n_ctx)
    return plan.n_bytes(shape, context), _in_f16(shape).n_bytes(shape, context)


def _in_f16(shape: ModelShape) -> Plan:
    return Plan.uniform(F16, shape.n_layer)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """``n_layer, bits_per_value, layers: [{layer, k, v, center_k, scale_k, exact_ends}]`` and others.

    ``centers_bytes`` are those of the tables of turned centers for `ENDS_CTX` tokens, None without a model.
    """
    data: dict[str, Any] = {
        "n_layer": plan.n_layer,
        "bits_per_value": plan.bits_per_value(),
        "fingerprint": plan.fingerprint,
        "architecture": None,
        "kv_bytes_per_token": None,
        "f16_bytes_per_token": None,
    }
    if plan.model is not None:
        data["architecture"] = plan.model.architecture
        data["kv_bytes_per_token"] = plan.bytes_per_token(plan.model)
        data["f16_bytes_per_token"] = f16_bytes_per_token(plan.model)
        if plan.model.has_windows:
            n_bytes, f16_bytes = bytes_in_context(plan, plan.model)
            data |= {"n_ctx": plan.model.n_ctx, "kv_bytes": n_bytes, "f16_bytes": f16_bytes}
    data["layers"] = [
        {
            "layer": il,
            "k": pair.k,
            "v": pair.v,
            "center_k": _is_centered(plan, il),
            "scale_k": _is_scaled(plan, il),
            "exact_ends": _has_ends(plan, il),
        }
        for il, pair in enumerate(plan.pairs)
    ]
    data["center_span"] = None if plan.centers is None else plan.centers.span
    data["centers_bytes"] = None if plan.model is None else _centers_bytes(plan, plan.model)
    data["ends"] = ends_to_json(plan)
    data["provenance"] = dict(plan.provenance)
    return data
