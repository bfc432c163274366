"""What the commands share that center a plan without a search."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.cli.kinds import COUNT, INPUT, N_TOKENS, SEED
from kvtuner_gguf.cli.nextstep import print_next
from kvtuner_gguf.cli.options import engine_option
from kvtuner_gguf.cli.texts import default_text
from kvtuner_gguf.report.shell import annotating

if TYPE_CHECKING:
    from kvtuner_gguf.plan.keyspread import KeySpread
    from kvtuner_gguf.plan.plan import Plan
    from kvtuner_gguf.plan.shape import ModelShape

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--text", type=INPUT, help="Calibration text, UTF-8. Default: a web text that is fetched once."),
    click.option("--tokens", type=N_TOKENS, default=2048, show_default=True, help="Calibration tokens."),
    click.option("--ctx", type=N_TOKENS, default=512, show_default=True, help="Context length of a chunk of them."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Which places of the text are taken."),
    engine_option,
    click.option("--threads", type=COUNT, help="Threads of the model. Default: all processors."),
)


def measured_options(command: Command) -> Command:
    """Options of what measures keys on a text: ``text`` and those that `with_centers` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_centers(
    model: Path, shape: ModelShape, plan: Plan, text: Path | None, measured: Mapping[str, Any]
) -> tuple[Plan, KeySpread]:
    """``plan`` with the centers and scales of ``model`` on ``text``; ``measured`` are the other options."""
    from kvtuner_gguf.engine.opening import check_engine, open_engine
    from kvtuner_gguf.engine.torch.install import import_torch
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.report.stages import step_progress
    from kvtuner_gguf.tuning.settings import Settings
    from kvtuner_gguf.tuning.texts import Texts

    tokens, ctx, seed, engine, threads = (measured[name] for name in ("tokens", "ctx", "seed", "engine", "threads"))
    with wrong_usage():
        Settings(n_tokens=tokens, n_ctx=ctx, ends=plan.ends)  # refuses what does not go together
    check_engine(model, read_model(model), engine)
    if text is not None:
        Texts((text,), (1.0,)).check_long_enough(tokens, ctx)
    with step_progress("load torch"):
        import_torch(threads)
    runs = open_engine(model, shape, threads=threads, engine=engine)
    from kvtuner_gguf.tuning.center import center_plan

    with step_progress("center keys") as progress:
        return center_plan(runs, plan, text or default_text(), tokens, ctx, seed, progress)


def print_plan(model: Path, out: Path, plan: Plan, spread: KeySpread | None, as_json: bool) -> None:
    """The ``plan`` of ``model`` that was written to ``out``; ``spread`` is that of its keys where they are centered."""
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.spreads import print_keys
    from kvtuner_gguf.report.terminal import print_text

    if as_json:
        click.echo(json.dumps({"file": str(out), **plan_to_json(plan), "next": [annotating(model, out)]}, indent=1))
        return
    click.echo(f"{out}")
    print_text(plan_summary(plan))
    if spread is not None:
        print_keys(spread)
    print_next(annotating(model, out))
