"""`kvtuner-gguf annotate` and `kvtuner-gguf strip`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.commands.outputs import check_outputs
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.plan import Plan

FILE = click.Path(path_type=Path, dir_okay=False)


def _target(model: Path, out: Path | None, in_place: bool, config: Path | None = None) -> Path:
    from kvtuner_gguf.gguffile.shards import shard_paths

    if (out is None) == (not in_place):
        raise KvtunerError("say where to write: give either -o OUT or --in-place")
    if out is None:
        check_outputs(model)
        return model
    if out.exists() and any(shard.exists() and out.samefile(shard) for shard in shard_paths(model)):
        raise KvtunerError(f"{out} is the model itself: use --in-place for that, or another target")
    check_outputs(out, inputs=[config])
    return out


@click.command("annotate")
@click.argument("model", type=FILE)
@click.argument("config", metavar="CFG", type=FILE)
@click.option("-o", "--out", type=FILE, help="Write the annotated model here.")
@click.option("--in-place", is_flag=True, help="Replace MODEL, whole or not at all.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def annotate_command(model: Path, config: Path, out: Path | None, in_place: bool, as_json: bool) -> None:
    """Write the plan CFG into the metadata of MODEL.

    The patched llama.cpp then uses it with no further flags; stock llama.cpp ignores it. Every other key and every
    tensor byte stay as they are. Of a split model, give any shard: only the first one changes.
    """
    from kvtuner_gguf.gguffile.annotate import annotate
    from kvtuner_gguf.report.bars import byte_progress
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json

    target = _target(model, out, in_place, config)
    with byte_progress(f"annotate {target.name}") as progress:
        plan = annotate(model, Plan.load(config), target, progress)
    if as_json:
        click.echo(json.dumps({"file": str(target), **plan_to_json(plan)}, indent=1))
    else:
        click.echo(f"{target}\n{plan_summary(plan)}")


@click.command("strip")
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, help="Write the model without a plan here.")
@click.option("--in-place", is_flag=True, help="Replace MODEL, whole or not at all.")
def strip_command(model: Path, out: Path | None, in_place: bool) -> None:
    """Take the plan out of MODEL again, so that nothing of it is left."""
    from kvtuner_gguf.gguffile.annotate import strip
    from kvtuner_gguf.report.bars import byte_progress

    target = _target(model, out, in_place)
    with byte_progress(f"strip {target.name}") as progress:
        had_plan = strip(model, target, progress)
    click.echo(f"{target}: {'the plan is taken out' if had_plan else 'there was no plan in it'}")
