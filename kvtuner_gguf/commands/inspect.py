"""`kvtuner-gguf inspect` and `kvtuner-gguf verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

FILE = click.Path(path_type=Path, dir_okay=False)
MAGIC = b"GGUF"


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
    except OSError as err:
        raise KvtunerError(f"cannot read {path}: {err.strerror or err}; check the path") from err


def load_plan(path: Path) -> tuple[Plan | None, str]:
    """The plan in a GGUF file or a JSON file, and where it comes from: ``gguf`` or ``config``."""
    if not _is_gguf(path):
        return Plan.load(path), "config"
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.gguffile.stored_plan import plan_of

    return plan_of(read_model(path)), "gguf"


def _default_plan(model: Path) -> Plan:
    """What the runtime allocates for a model without a plan."""
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.gguffile.shards import read_model

    shape = model_shape(read_model(model))
    return Plan(Plan.uniform(Pair("f16", "f16"), shape.n_layer).pairs, shape)


@click.command("inspect")
@click.argument("model_or_cfg", type=FILE)
@click.option("--png", type=FILE, help="Also draw the keys of each layer, before and after centering, to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(model_or_cfg: Path, png: Path | None, as_json: bool) -> None:
    """Show the plan of a GGUF file or of a plan file: the types of each layer, true bits per value, bytes per token.

    Where keys are centered, a table shows the largest and the root mean square key of each layer before and after. For
    a model without a plan, show what llama.cpp then allocates: f16 in every layer.
    """
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.spreads import key_table

    plan, source = load_plan(model_or_cfg)
    if plan is None:
        plan, source = _default_plan(model_or_cfg), "default"
    spread = KeySpread.from_json(plan.provenance["keys"]) if "keys" in plan.provenance else None
    if png is not None:
        _draw_keys(spread, png, model_or_cfg)
    if as_json:
        click.echo(json.dumps({"source": source, **plan_to_json(plan)}, indent=1))
        return
    if source == "default":
        click.echo(f"{model_or_cfg}: no plan; llama.cpp allocates")
    click.echo(plan_summary(plan))
    for name, value in plan.provenance.items():
        if name != "keys":
            click.echo(f"{name}: {value}")
    if spread is not None:
        click.echo(key_table(spread))


def _draw_keys(spread: KeySpread | None, png: Path, source: Path) -> None:
    from kvtuner_gguf.report.spreads import save_key_chart

    if spread is None:
        raise KvtunerError(f"{source}: it does not say how far keys reach: tune the model with centering")
    save_key_chart(spread, png, source.name)


@click.command("verify")
@click.argument("model_or_cfg", type=FILE)
@click.option("--model", type=FILE, help="Check that the plan fits this model.")
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
        click.echo(json.dumps({"ok": False, "error": " ".join(str(err).split())}))
        raise click.exceptions.Exit(1) from err
    if as_json:
        click.echo(json.dumps({"ok": True, "fingerprint": plan.fingerprint, "bits_per_value": plan.bits_per_value()}))
    else:
        click.echo(f"OK: {plan.n_layer} layers, {plan.bits_per_value():.4f} bits per value, {plan.fingerprint}")


def _verified(model_or_cfg: Path, model: Path | None) -> Plan:
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.keys import Keys
    from kvtuner_gguf.gguffile.shards import read_model

    plan, source = load_plan(model_or_cfg)
    if plan is None:
        raise KvtunerError(f"{model_or_cfg}: no plan in it: annotate it, or give a plan file")
    if source == "gguf":
        headers = read_model(model_or_cfg)
        stored = headers[0].get(Keys.PLAN_FINGERPRINT)
        if stored is not None and stored != plan.fingerprint:
            raise KvtunerError(
                f"{model_or_cfg}: the stored fingerprint {stored!r:.40} is not the plan's {plan.fingerprint}: "
                "annotate it again"
            )
        fitted(plan, headers)
    return plan if model is None else fitted(plan, read_model(model))
