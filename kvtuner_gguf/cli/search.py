"""`kvtuner-gguf search`: the plan, from stages that were run before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.cli.kinds import INPUT, MODEL, OUTPUT
from kvtuner_gguf.cli.nextstep import print_next
from kvtuner_gguf.cli.options import goal_options, measure_options
from kvtuner_gguf.cli.outputs import check_search_outputs
from kvtuner_gguf.cli.running import running
from kvtuner_gguf.cli.settings import asked, own_folder
from kvtuner_gguf.cli.talk import goes_on_from
from kvtuner_gguf.cli.tuned import print_tuned, print_tuned_json
from kvtuner_gguf.plan.backends import of_types
from kvtuner_gguf.report.shell import annotating
from kvtuner_gguf.tuning.settings import check_goal, text_facts


@click.command("search")
@click.argument("model", type=MODEL)
@click.argument("profile", type=INPUT)
@click.argument("stage", metavar="CANDIDATES|GROUPS", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, default="cfg.json", show_default=True, help="Write the plan here.")
@click.option("--front", type=OUTPUT, help="Also write the front here.")
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
    from kvtuner_gguf.files import artifact
    from kvtuner_gguf.tuning.given import candidates_or_groups, check_model_given, check_text_given, types_given
    from kvtuner_gguf.tuning.profile import Profile

    profiled = artifact.load(profile, Profile.from_json, "profile")
    candidates, groups = artifact.load(stage, candidates_or_groups, "candidates or groups")
    folder = own_folder(options["work"], options["storage"])
    goes_on_from(folder, "--fresh" if options["fresh"] else None)
    method = "exact" if groups is None else "paper"
    wanted = asked(model, {**options, "method": method}, folder)
    for path, given in ((profile, profiled), (stage, candidates)):
        check_model_given(str(path), given, str(model), wanted.shape)
        if wanted.texts is not None:
            check_text_given(str(path), given, text_facts(wanted.texts, wanted.settings))
    with wrong_usage():
        backend = of_types(types_given(profiled, groups, wanted.settings.fixed))
        check_goal(replace(wanted.settings, backend=backend), wanted.shape)
    with running(model, wanted, options, folder) as tuner:
        tuner.take(profiled, candidates, groups)
        tuned = tuner.run()
    tuned.plan.save(out)
    if front is not None:
        artifact.save(front, tuned.front.to_json())
    if as_json:
        print_tuned_json(out, tuned, None, annotating(model, out))
        return
    print_tuned(out, tuned)
    print_next(annotating(model, out))
