"""`kvtuner-gguf prune`, `cluster` and `search`: the stages after the profile, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvtuner_gguf.commands.outputs import check_outputs
from kvtuner_gguf.commands.tune import make_settings, print_tuned, print_tuned_json
from kvtuner_gguf.commands.tuningoptions import (
    FILE,
    check_search_outputs,
    goal_options,
    import_torch,
    measure_options,
    texts_of,
)


@click.command("prune")
@click.argument("profile", type=FILE)
@click.option("-o", "--out", type=FILE, default="candidates.json", show_default=True, help="Write the candidates here.")
@click.option(
    "--rule",
    type=click.Choice(["cautious", "paper"]),
    default="cautious",
    show_default=True,
    help="Drop what has 1.25 times the output error's energy, or, as the paper does, all off the front of e_o.",
)
def prune_command(profile: Path, out: Path, rule: str) -> None:
    """Keep, of the pairs in PROFILE, those that are worth their bits in each layer."""
    check_outputs(out, inputs=[profile])
    import_torch(None)
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.tuning.profile import Profile
    from kvtuner_gguf.tuning.prune import CAUTIOUS, PAPER, prune

    found = prune(artifact.load(profile, Profile.from_json, "profile"), PAPER if rule == "paper" else CAUTIOUS)
    artifact.save(out, found.to_json())
    counts = [len(pairs) for pairs in found.layers]
    click.echo(f"{out}: {min(counts)} to {max(counts)} pairs a layer")


@click.command("cluster")
@click.argument("profile", type=FILE)
@click.argument("candidates", type=FILE)
@click.option("-o", "--out", type=FILE, default="groups.json", show_default=True, help="Write the groups here.")
@click.option("--eps", type=float, default=0.05, show_default=True, help="Distance of e_o within a group.")
@click.option("--min-samples", type=int, default=2, show_default=True, help="Layers that make a group.")
def cluster_command(profile: Path, candidates: Path, out: Path, eps: float, min_samples: int) -> None:
    """Group the layers that have the same CANDIDATES and much the same e_o in PROFILE (DBSCAN)."""
    check_outputs(out, inputs=[profile, candidates])
    import_torch(None)
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.report.layers import ranges
    from kvtuner_gguf.tuning.cluster import cluster
    from kvtuner_gguf.tuning.profile import Profile
    from kvtuner_gguf.tuning.prune import Candidates

    profiled = artifact.load(profile, Profile.from_json, "profile")
    groups = cluster(profiled, artifact.load(candidates, Candidates.from_json, "list"), eps, min_samples)
    artifact.save(out, groups.to_json())
    click.echo(f"{out}: {len(groups.groups)} groups")
    for group in groups.groups:
        click.echo(f"layers {ranges(group.layers)}: {' '.join(map(str, group.pairs))}")


@click.command("search")
@click.argument("model", type=FILE)
@click.argument("profile", type=FILE)
@click.argument("stage", metavar="CANDIDATES|GROUPS", type=FILE)
@click.option("-o", "--out", type=FILE, default="cfg.json", show_default=True, help="Write the plan here.")
@click.option("--front", type=FILE, help="Also write the front here.")
@goal_options
@measure_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def search_command(
    model: Path, profile: Path, stage: Path, out: Path, front: Path | None, as_json: bool, **options: Any
) -> None:
    """Search the plan of MODEL among the CANDIDATES of its PROFILE, or one pair for each of the GROUPS.

    Candidates are priced, and an exact solver finds the plan; groups are searched as in the paper, by NSGA-II. The
    types are those of the profile, and the text and its tokens must be, too.
    """
    check_search_outputs(out, front, inputs=[model, profile, stage], work=options["work"], texts=options["texts"])
    import_torch(options["threads"])
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.report.bars import step_progress
    from kvtuner_gguf.tuning.given import candidates_or_groups
    from kvtuner_gguf.tuning.profile import Profile
    from kvtuner_gguf.tuning.tuner import Tuner

    profiled = artifact.load(profile, Profile.from_json, "profile")
    candidates, groups = artifact.load(stage, candidates_or_groups, "candidates or groups")
    method = "exact" if groups is None else "paper"
    shape, settings = make_settings(model, {**options, "method": method})
    text = texts_of(options["texts"])
    tuner = Tuner(model, shape, text, settings, options["work"], options["fresh"], step_progress)
    tuner.take(profiled, candidates, groups)
    tuned = tuner.run()
    tuned.plan.save(out)
    if front is not None:
        artifact.save(front, tuned.front.to_json())
    if as_json:
        print_tuned_json(out, tuned, None)
    else:
        print_tuned(out, tuned)
