"""`kvtuner-gguf verify`: whether a plan is one, and fits its model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.failures import one_line
from kvtuner_gguf.cli.kinds import MODEL
from kvtuner_gguf.errors import KvtunerError, about, in_parts
from kvtuner_gguf.gguffile.tunable import way_to_a_plan
from kvtuner_gguf.plan.ends import ENDS_CTX
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.plans import ends_to_json


@click.command("verify")
@click.argument("model_or_cfg", type=MODEL)
@click.option("--model", type=MODEL, help="Check that the plan fits this model.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify_command(model_or_cfg: Path, model: Path | None, as_json: bool) -> None:
    """Check a plan: its form, its types, and whether it fits the model.

    Prints OK and ends with 0, or prints one line that says what is wrong and ends with 1.
    """
    try:
        plan = _verified(model_or_cfg, model)
    except KvtunerError as err:
        if not as_json:
            raise
        error, hint = in_parts(one_line(err))
        click.echo(json.dumps({"ok": False, "error": error, "hint": hint}))
        raise click.exceptions.Exit(1) from err
    if as_json:
        facts = {"fingerprint": plan.fingerprint, "bits_per_value": plan.bits_per_value(), "ends": ends_to_json(plan)}
        click.echo(json.dumps({"ok": True, **facts}))
    else:
        bits = f"{plan.bits_per_value():.4f} bits per value{_beside(plan)}"
        from kvtuner_gguf.report.terminal import print_text

        print_text(f"OK: {plan.n_layer} layers, {bits}, {plan.fingerprint}")


def _beside(plan: Plan) -> str:
    """The exact ends and turned centers, and the bits with them."""
    text = "" if plan.ends is None else f", exact ends {plan.ends}"
    if plan.centers is not None and plan.centers.span is not None:
        text += f", centers turned every {plan.centers.span} positions"
    if text and plan.model is not None:
        text += f", {plan.bits_with_ends(plan.model, ENDS_CTX):.4f} with them for {ENDS_CTX} tokens"
    return text


def _remedy(shape: ModelShape) -> str:
    """What to do where a model has no plan."""
    if not any(layer.keeps for layer in shape.layers):
        return "it keeps no KV cache, and needs none"
    return f"{way_to_a_plan(shape)} and annotate it, or give a plan file"


def _verified(model_or_cfg: Path, model: Path | None) -> Plan:
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.keys import Keys
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.gguffile.stored_plan import load_plan

    plan, source = load_plan(model_or_cfg)
    headers = read_model(model_or_cfg) if source == "gguf" else []
    if plan is None:
        raise KvtunerError(f"{model_or_cfg}: no plan in it: {_remedy(model_shape(headers))}")
    if headers:
        stored = headers[0].get(Keys.PLAN_FINGERPRINT)
        if stored is not None and stored != plan.fingerprint:
            raise KvtunerError(
                f"{model_or_cfg}: the stored fingerprint {stored!r:.40} is not the plan's {plan.fingerprint}: "
                "annotate it again"
            )
        fitted(plan, headers)
    if model is None:
        return plan
    headers = read_model(model)
    with about(model):
        return fitted(plan, headers)
