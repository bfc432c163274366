"""The command that is to follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtuner_gguf.report.shell import annotating, next_command

if TYPE_CHECKING:
    from kvtuner_gguf.plan.shape import ModelShape

# for a model that a command is not given
ANY_MODEL = Path("MODEL.gguf")


def steps_to_a_plan(model: Path, shape: ModelShape) -> list[str]:
    """The commands that give ``model`` a plan."""
    from kvtuner_gguf.gguffile.tunable import tuning_obstacle

    plan = Path("cfg.json")
    made = ("plan", model, "--uniform", "q8_0") if tuning_obstacle(shape) else ("tune", model)
    return [next_command(*made, "-o", plan), annotating(model, plan)]


def print_next(command: str) -> None:
    """In one line, whatever the width: it is to be copied."""
    click.echo(f"next: {command}")
