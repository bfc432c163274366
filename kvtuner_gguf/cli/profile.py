"""`kvtuner-gguf profile`: the first stage of `tune` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kvtuner_gguf.cli.kinds import MODEL, OUTPUT
from kvtuner_gguf.cli.nextstep import print_next
from kvtuner_gguf.cli.options import measure_options
from kvtuner_gguf.cli.outputs import check_search_outputs
from kvtuner_gguf.cli.running import running
from kvtuner_gguf.cli.settings import asked
from kvtuner_gguf.cli.talk import goes_on_from
from kvtuner_gguf.report.shell import next_command


@click.command("profile")
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=OUTPUT, default="profile.json", show_default=True, help="Write the profile here.")
@measure_options
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def profile_command(model: Path, out: Path, work: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how much each pair of cache types disturbs the attention of each layer of MODEL.

    From full-precision queries, keys and values, each layer alone: the mean relative errors of keys, values and
    attention output (e_k, e_v, e_o), the mean absolute error of the attention weights (e_a), and the energy of the
    output's error over that of the output (error).
    """
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.report.terminal import print_text

    goes_on_from(work, "--fresh" if options["fresh"] else None)
    check_search_outputs(out, inputs=[model], work=work, texts=options["texts"])
    wanted = asked(model, options, work)
    with running(model, wanted, options, work) as tuner:
        profiled = tuner.profile
    artifact.save(out, profiled.to_json())
    if as_json:
        click.echo(json.dumps({"file": str(out), **profiled.to_json()}))
        return
    n_pairs = len(profiled.layers[0])
    print_text(f"{out}: {n_pairs} pairs in {wanted.shape.n_layer} layers")
    print_next(next_command("prune", out))
