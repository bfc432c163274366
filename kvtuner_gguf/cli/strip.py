"""`kvtuner-gguf strip`: the plan out of the model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import MODEL, OUTPUT
from kvtuner_gguf.cli.outputs import model_target, what_was_written


@click.command("strip")
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=OUTPUT, help="Write the model without a plan here.")
@click.option("--in-place", is_flag=True, help="Change MODEL, whole or not at all.")
@click.option(
    "--keep-room", is_flag=True, help="Leave the room that the plan had, so that in place only the header changes."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def strip_command(model: Path, out: Path | None, in_place: bool, keep_room: bool, as_json: bool) -> None:
    """Take the plan out of MODEL again, so that the file is as it was, byte for byte.

    That moves all of its data, which takes a while on large files. With --keep-room only the keys of the plan go: no
    reader sees it any more, and bytes of it may still be in the room for the next one.
    """
    from kvtuner_gguf.gguffile.annotate import has_plan, write_no_plan
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.report.stages import byte_progress
    from kvtuner_gguf.report.terminal import print_text

    target = model_target(model, out, in_place)
    started = time.monotonic()
    with byte_progress(f"strip {target.name}") as progress:
        headers = read_model(model)
        written = write_no_plan(headers, target, progress, keep_room)
    seconds, had_plan = time.monotonic() - started, has_plan(headers)
    if as_json:
        facts = {"header_only": written.header_only, "seconds": round(seconds, 3)}
        click.echo(json.dumps({"file": str(written.path), "had_plan": had_plan, **facts}))
        return
    print_text(f"{written.path}: {'the plan is taken out' if had_plan else 'there was no plan in it'}")
    print_text(what_was_written(written, seconds))
