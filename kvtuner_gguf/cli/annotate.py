"""`kvtuner-gguf annotate`: a plan into the model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import INPUT, MODEL, OUTPUT
from kvtuner_gguf.cli.nextstep import print_next
from kvtuner_gguf.cli.outputs import model_target, what_was_written
from kvtuner_gguf.report.shell import serving


@click.command("annotate")
@click.argument("model", type=MODEL)
@click.argument("config", metavar="CFG", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, help="Write the annotated model here.")
@click.option("--in-place", is_flag=True, help="Change MODEL: its header alone where that has room, or all of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def annotate_command(model: Path, config: Path, out: Path | None, in_place: bool, as_json: bool) -> None:
    """Write the plan CFG, a plan file or another annotated model, into the metadata of MODEL.

    The patched llama.cpp then uses it with no further flags; stock llama.cpp ignores it. Every other key and every
    tensor byte stay as they are. Of a split model, give any shard: only the first one changes.

    The first plan replaces the file whole and leaves room in its header. With --in-place each further plan is written
    into that room and put in force by one write in the first sector: that takes no time on files of any size, and a
    kill at any moment leaves the old plan or the new one.
    """
    from kvtuner_gguf.gguffile.annotate import write_plan
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.gguffile.stored_plan import given_plan
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.stages import byte_progress
    from kvtuner_gguf.report.terminal import print_text

    target = model_target(model, out, in_place, config)
    started = time.monotonic()
    with byte_progress(f"annotate {target.name}") as progress:
        headers = read_model(model)
        plan = fitted(given_plan(config), headers)
        written = write_plan(headers, plan, target, progress)
    seconds = time.monotonic() - started
    following = serving(written.path)
    if as_json:
        facts = {"header_only": written.header_only, "seconds": round(seconds, 3), "next": [following]}
        click.echo(json.dumps({"file": str(written.path), **facts, **plan_to_json(plan)}, indent=1))
    else:
        click.echo(f"{written.path}")
        print_text(f"{plan_summary(plan)}\n{what_was_written(written, seconds)}")
        print_next(following)
