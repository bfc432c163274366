"""`kvtuner-gguf tune`, and `profile`, its first stage alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvtuner_gguf.commands.tuningoptions import (
    FILE,
    check_search_outputs,
    chosen_backend,
    goal_options,
    import_torch,
    measure_options,
    shape_to_tune,
    texts_of,
)

if TYPE_CHECKING:
    from kvtuner_gguf.evaluation.rows import Row
    from kvtuner_gguf.tuning.judges import TaskJudge
    from kvtuner_gguf.tuning.tuner import Tuned

# the types for the paper's 8, 4 and 2 bits
PAPER_TYPES = "q8_0,q4_0,q2_nl"
# reasons that are printed; the others are in the prices
SHOWN_REASONS = 8


@click.command("tune")
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, default="cfg.json", show_default=True, help="Write the plan here.")
@click.option(
    "--method",
    type=click.Choice(["exact", "paper"]),
    default="exact",
    show_default=True,
    help="Prices and an exact solver, or the groups and the genetic search of the KVTuner paper.",
)
@click.option(
    "--objective",
    type=click.Choice(["kld", "perplexity", "failed"]),
    default="kld",
    show_default=True,
    help="What the paper's method minimises; failed: the share of --tasks that llama.cpp does not solve.",
)
@click.option(
    "--tasks", type=FILE, help="JSON lines with 'question' and 'answer', as in GSM8K; the last 4 are examples."
)
@click.option("--n-tasks", type=int, default=200, show_default=True, help="Tasks of that file.")
@goal_options
@measure_options
@click.option("--png", type=FILE, help="Also draw the front, KLD against bits, to this file.")
@click.option(
    "--native/--no-native", default=True, help="Have the built llama.cpp judge the plan, too.  [if it is there]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def tune_command(
    model: Path,
    out: Path,
    tasks: Path | None,
    n_tasks: int,
    png: Path | None,
    native: bool,
    as_json: bool,
    work: Path | None,
    **options: Any,
) -> None:
    """Search the K and V cache type of each layer of MODEL.

    A torch model in float32, loaded from the GGUF itself, is run on a calibration text. The error that each pair of
    types makes in each layer's attention prunes the candidates; the KL divergence of the model's predictions prices
    them; an exact solver finds the plan, trades between layers refine it. Text that was held out judges it, in torch
    and in the built llama.cpp, whose weights are those of the file and whose arithmetic is its own.

    What is finished is kept in the folder OUT.tune (see --work): an interrupted tuning goes on where it was, another
    goal for the same model takes the profile and the prices from there.
    """
    fresh = options.pop("fresh")
    folder = work or out.with_suffix(".tune")
    check_search_outputs(out, png, inputs=[model, tasks], work=folder, texts=options["texts"])
    shape, settings = make_settings(model, options)
    from kvtuner_gguf.report.bars import step_progress
    from kvtuner_gguf.tuning.settings import check_goal
    from kvtuner_gguf.tuning.tuner import Tuner

    check_goal(settings, shape)
    text = texts_of(options["texts"])
    with _task_judge(model, options["objective"], tasks, n_tasks, options["threads"]) as by_tasks:
        tuned = Tuner(model, shape, text, settings, folder, fresh, step_progress).run(by_tasks)
    tuned.plan.save(out)
    if png is not None:
        from kvtuner_gguf.report.fronts import save_front_chart

        save_front_chart(tuned.front, tuned.plan, png, model.name)
    if not as_json:
        print_tuned(out, tuned)  # before native code runs, which may crash
    judged = _native_row(model, tuned, options["threads"]) if native else None
    if as_json:
        print_tuned_json(out, tuned, judged)
    elif judged is not None:
        print_judged(tuned, judged)


@click.command("profile")
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, default="profile.json", show_default=True, help="Write the profile here.")
@measure_options
def profile_command(model: Path, out: Path, work: Path | None, fresh: bool, **options: Any) -> None:
    """Measure how much each pair of cache types disturbs the attention of each layer of MODEL.

    From full-precision queries, keys and values, each layer alone: the mean relative errors of keys, values and
    attention output (e_k, e_v, e_o), the mean absolute error of the attention weights (e_a), and the energy of the
    output's error over that of the output (error).
    """
    from kvtuner_gguf.files import artifact

    check_search_outputs(out, inputs=[model], work=work, texts=options["texts"])
    shape, settings = make_settings(model, options)
    from kvtuner_gguf.report.bars import step_progress
    from kvtuner_gguf.tuning.tuner import Tuner

    tuner = Tuner(model, shape, texts_of(options["texts"]), settings, work, fresh, step_progress)
    artifact.save(out, tuner.profile.to_json())
    n_pairs = len(tuner.profile.layers[0])
    click.echo(f"{out}: {n_pairs} pairs in {shape.n_layer} layers; prune it with 'kvtuner-gguf prune {out}'")


@contextmanager
def _task_judge(
    model: Path, objective: str, tasks: Path | None, n_tasks: int, threads: int | None
) -> Iterator[TaskJudge | None]:
    """What judges plans by tasks, where they are the objective."""
    if objective != "failed":
        yield None
        return
    from kvtuner_gguf.errors import KvtunerError
    from kvtuner_gguf.evaluation.task_runner import TaskRunner
    from kvtuner_gguf.evaluation.tasks import load_tasks

    if tasks is None:
        raise KvtunerError("--objective failed needs --tasks: give a file of tasks")
    with TaskRunner(model, load_tasks(tasks, n_tasks), threads) as runner:
        yield runner


def make_settings(model: Path, options: dict[str, Any]) -> tuple:
    """The shape of the model and the settings that ``options`` stand for."""
    import_torch(options["threads"])
    shape, center = shape_to_tune(model, options["center"])
    names = options["candidates"]
    if options.get("method") == "paper" and not (names or options["backend"]):
        names = PAPER_TYPES
    backend = chosen_backend(options["backend"], names)
    from kvtuner_gguf.tuning.settings import Settings

    measure = {"n_tokens": options["tokens"], "n_ctx": options["ctx"], "seed": options["seed"], "center": center}
    measure["device"] = options["device"]
    return shape, Settings(backend=backend, **measure, **_search_settings(options))


def _search_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a search that are not left to their defaults."""
    if "bits" not in options:
        return {}
    from kvtuner_gguf.tuning.fixed import parse_fixed
    from kvtuner_gguf.tuning.goal import DEFAULT_BITS, Goal

    bits, mib, max_kld = (options[name] for name in ("bits", "mib", "max_kld"))
    if bits is None and mib is None and max_kld is None:
        bits = DEFAULT_BITS
    method = options["method"]
    trials = options["trials"] if options["trials"] is not None else {"exact": 32, "paper": 200}[method]
    goal = Goal(bits, mib, options["for_ctx"], max_kld)
    objective = options.get("objective", "kld")
    return {
        "goal": goal,
        "method": method,
        "objective": objective,
        "trials": trials,
        "n_rungs": options["rungs"],
        "evolve": options["evolve"],
        "n_points": options["points"],
        "fixed": parse_fixed(options["fix"]),
    }


def _native_row(model: Path, tuned: Tuned, threads: int | None) -> Row | None:
    """The plan on the held-out text in the built llama.cpp; None, with a word on stderr, where that is not there."""
    from kvtuner_gguf.engine.llama.native import patched_llama_cpp
    from kvtuner_gguf.errors import KvtunerError
    from kvtuner_gguf.evaluation.by_llama import evaluate
    from kvtuner_gguf.evaluation.chunks import Chunks
    from kvtuner_gguf.report.bars import step_progress

    try:
        patched_llama_cpp()
    except KvtunerError as err:
        click.echo(f"llama.cpp does not judge the plan: {err}", err=True)
        return None
    with step_progress("judge by llama.cpp") as progress:
        caches = {"plan, llama.cpp": tuned.plan}
        return evaluate(model, tuned.plan.model, caches, Chunks(tuned.held_out), threads, progress)[1]


def print_tuned_json(out: Path, tuned: Tuned, native: Row | None) -> None:
    from dataclasses import asdict

    from kvtuner_gguf.report.plans import plan_to_json

    rows = [tuned.row] if native is None else [tuned.row, native]
    data = {"file": str(out), "payload_bits": tuned.plan.payload_bits(), **plan_to_json(tuned.plan)}
    judged = {"reasons": _reasons(tuned), "held_out": list(map(asdict, rows))}
    click.echo(json.dumps({**data, **judged, "front": tuned.front.to_json()["points"]}, indent=1))


def print_judged(tuned: Tuned, native: Row) -> None:
    """What the built llama.cpp makes of the plan."""
    from kvtuner_gguf.report.table import print_rows

    print_rows([tuned.row, native], "the same text in llama.cpp")
    click.echo(f"the two differ by {abs(native.kld_mean - tuned.row.kld_mean):.5f} in mean KLD")


def print_tuned(out: Path, tuned: Tuned) -> None:
    from kvtuner_gguf.report.fronts import print_front
    from kvtuner_gguf.report.plans import plan_summary
    from kvtuner_gguf.report.table import print_rows

    why = _reasons(tuned)
    print_front(tuned.front, tuned.plan)
    title = f"held-out text, {len(tuned.held_out)} x {len(tuned.held_out[0])} tokens, against the f16 cache"
    print_rows([tuned.row], title)
    click.echo(f"{out}\n{plan_summary(tuned.plan)}")
    for text in why[:SHOWN_REASONS]:
        click.echo(text)
    if len(why) > SHOWN_REASONS:
        click.echo(f"and {len(why) - SHOWN_REASONS} more: see --json")


def _reasons(tuned: Tuned) -> list[str]:
    from kvtuner_gguf.tuning.reasons import reasons

    return [] if tuned.prices is None else reasons(tuned.plan.pairs, tuned.prices)
