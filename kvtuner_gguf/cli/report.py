"""`kvtuner-gguf report`: one HTML page of plans, fronts, results of `eval` and speeds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import FILE_OR_FOLDER, OUTPUT
from kvtuner_gguf.cli.outputs import check_outputs


@click.command("report")
@click.argument("files", type=FILE_OR_FOLDER, nargs=-1, required=True)
@click.option("-o", "--out", type=OUTPUT, required=True, help="Write the page here.")
@click.option("--model", metavar="NAME", help="The name of the model's file, for the title and the commands.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def report_command(files: tuple[Path, ...], out: Path, model: str | None, as_json: bool) -> None:
    """Put what FILES hold on one page of HTML, which needs no network and no script.

    FILES are plans or annotated models, folders of a tuning (OUT.tune) or fronts and prices out of one, what
    `eval --json` printed, and what `llama-bench -o json` did, in any order. A part of the page for which nothing is
    given is left out.
    """
    from kvtuner_gguf.cli.gathered import gather
    from kvtuner_gguf.report.html.page import save_page

    check_outputs(out, inputs=files)
    save_page(gather(files, model), out)
    click.echo(json.dumps({"file": str(out)}) if as_json else str(out))
