"""`kvtuner-gguf cluster`: layers that share one pair."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import COUNT, INPUT, OUTPUT, POSITIVE
from kvtuner_gguf.cli.nextstep import ANY_MODEL, print_next
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.engine.torch.install import check_installed
from kvtuner_gguf.report.measured import measuring_options
from kvtuner_gguf.report.shell import next_command


@click.command("cluster")
@click.argument("profile", type=INPUT)
@click.argument("candidates", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, default="groups.json", show_default=True, help="Write the groups here.")
@click.option("--eps", type=POSITIVE, default=0.05, show_default=True, help="Distance of e_o within a group.")
@click.option("--min-samples", type=COUNT, default=2, show_default=True, help="Layers that make a group.")
@click.option("--json", "as_json", is_flag=True, help="Print the groups as JSON.")
def cluster_command(profile: Path, candidates: Path, out: Path, eps: float, min_samples: int, as_json: bool) -> None:
    """Group the layers that have the same CANDIDATES and much the same e_o in PROFILE (DBSCAN)."""
    check_outputs(out, inputs=[profile, candidates])
    check_installed()
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.report.layers import ranges
    from kvtuner_gguf.report.terminal import print_text
    from kvtuner_gguf.tuning.cluster import cluster
    from kvtuner_gguf.tuning.profile import Profile
    from kvtuner_gguf.tuning.prune import Candidates

    profiled = artifact.load(profile, Profile.from_json, "profile")
    groups = cluster(profiled, artifact.load(candidates, Candidates.from_json, "list"), eps, min_samples)
    artifact.save(out, groups.to_json())
    if as_json:
        click.echo(json.dumps({"file": str(out), **groups.to_json()}))
        return
    print_text(f"{out}: {len(groups.groups)} groups")
    for group in groups.groups:
        print_text(f"layers {ranges(group.layers)}: {' '.join(map(str, group.pairs))}")
    print_next(next_command("search", ANY_MODEL, profile, out, *measuring_options(profiled.provenance)))
