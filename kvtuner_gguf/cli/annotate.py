"""`kvtuner-gguf annotate`: a plan into the model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import INPUT, MODEL, OUTPUT
from kvtuner_gguf.cli.outputs import model_target
from kvtuner_gguf.plan.plan import Plan


@click.command("annotate")
@click.argument("model", type=MODEL)
@click.argument("config", metavar="CFG", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, help="Write the annotated model here.")
@click.option("--in-place", is_flag=True, help="Replace MODEL, whole or not at all.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def annotate_command(model: Path, config: Path, out: Path | None, in_place: bool, as_json: bool) -> None:
    """Write the plan CFG into the metadata of MODEL.

    The patched llama.cpp then uses it with no further flags; stock llama.cpp ignores it. Every other key and every
    tensor byte stay as they are. Of a split model, give any shard: only the first one changes.
    """
    from kvtuner_gguf.gguffile.annotate import annotate
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.stages import byte_progress

    target = model_target(model, out, in_place, config)
    with byte_progress(f"annotate {target.name}") as progress:
        plan = annotate(model, Plan.load(config), target, progress)
    if as_json:
        click.echo(json.dumps({"file": str(target), **plan_to_json(plan)}, indent=1))
    else:
        click.echo(f"{target}\n{plan_summary(plan)}")
