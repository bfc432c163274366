"""`kvtuner-gguf strip`: the plan out of the model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import MODEL, OUTPUT
from kvtuner_gguf.cli.outputs import model_target


@click.command("strip")
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=OUTPUT, help="Write the model without a plan here.")
@click.option("--in-place", is_flag=True, help="Replace MODEL, whole or not at all.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def strip_command(model: Path, out: Path | None, in_place: bool, as_json: bool) -> None:
    """Take the plan out of MODEL again, so that nothing of it is left."""
    from kvtuner_gguf.gguffile.annotate import strip
    from kvtuner_gguf.report.stages import byte_progress

    target = model_target(model, out, in_place)
    with byte_progress(f"strip {target.name}") as progress:
        had_plan = strip(model, target, progress)
    if as_json:
        click.echo(json.dumps({"file": str(target), "had_plan": had_plan}))
        return
    click.echo(f"{target}: {'the plan is taken out' if had_plan else 'there was no plan in it'}")
