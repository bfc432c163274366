"""`kvtuner-gguf demo`: the whole way on a small model, from the file to per-layer types in Python and in a server."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import COUNT, FOLDER, POSITIVE
from kvtuner_gguf.cli.talk import flags, goes_on_from


@click.command("demo")
@click.option(
    "--dir",
    "folder",
    type=FOLDER,
    default=Path("out/demo"),
    show_default=True,
    help="Where plan, annotated model, results and logs go.",
)
@click.option("--bits", type=POSITIVE, default=6.5, show_default=True, help="Budget in true bits per cached value.")
@click.option("--chunks", type=COUNT, default=8, show_default=True, help="Chunks of 512 tokens to judge by.")
@click.option("--force", is_flag=True, help="Do finished steps again.")
@click.option("--json", "as_json", is_flag=True, help="Print files and rows as JSON, all else on stderr.")
def demo_command(folder: Path, bits: float, chunks: int, force: bool, as_json: bool) -> None:
    """Tune, annotate, judge and run SmolLM2-135M.

    Fetches the model, tunes a plan on web text, writes it into a copy of the model, judges that against uniform pairs
    on encyclopedia text, and completes a prompt in Python and over HTTP. Ends with an error unless the file, the Python
    property, the server and its start-up log report the same types for every layer.
    """
    from kvtuner_gguf.demo import Demo, DemoSettings

    goes_on_from(folder, "--force" if force else None)
    settings = DemoSettings(bits=bits, chunks=chunks)
    if not as_json:
        Demo(folder, settings, click.echo, flags()).run(force)
        return
    demo = Demo(folder, settings, click.echo, flags(), sys.stderr.fileno())
    with redirect_stdout(sys.stderr):
        demo.run(force)
    click.echo(json.dumps(demo.results))
