"""`kvtuner-gguf prune`: the pairs that are worth their bits."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import INPUT, OUTPUT
from kvtuner_gguf.cli.nextstep import ANY_MODEL, print_next
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.report.measured import measuring_options
from kvtuner_gguf.report.shell import next_command


@click.command("prune")
@click.argument("profile", type=INPUT)
@click.option(
    "-o", "--out", type=OUTPUT, default="candidates.json", show_default=True, help="Write the candidates here."
)
@click.option(
    "--rule",
    type=click.Choice(["cautious", "paper"]),
    default="cautious",
    show_default=True,
    help="Drop what has 1.25 times the output error's energy, or, as the paper does, all off the front of e_o.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the candidates as JSON.")
def prune_command(profile: Path, out: Path, rule: str, as_json: bool) -> None:
    """Keep, of the pairs in PROFILE, those that are worth their bits in each layer."""
    check_outputs(out, inputs=[profile])
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.report.terminal import print_text
    from kvtuner_gguf.tuning.profile import Profile
    from kvtuner_gguf.tuning.prune import CAUTIOUS, PAPER, prune

    found = prune(artifact.load(profile, Profile.from_json, "profile"), PAPER if rule == "paper" else CAUTIOUS)
    artifact.save(out, found.to_json())
    if as_json:
        click.echo(json.dumps({"file": str(out), **found.to_json()}))
        return
    counts = [len(pairs) for pairs in found.layers]
    print_text(f"{out}: {min(counts)} to {max(counts)} pairs a layer")
    print_next(next_command("search", ANY_MODEL, profile, out, *measuring_options(found.provenance)))
