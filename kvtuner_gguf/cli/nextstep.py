"""The command that is to follow."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvtuner_gguf.plan.shape import ModelShape

PROGRAM = "kvtuner-gguf"
# for a model that a command is not given
ANY_MODEL = Path("MODEL.gguf")


def next_command(*words: object) -> str:
    """A command of ours as a shell takes it."""
    return shlex.join([PROGRAM, *map(str, words)])


def annotating(model: Path, plan: Path) -> str:
    """The command that writes ``plan`` into a copy of ``model``, into itself where that is one of several shards."""
    from kvtuner_gguf.gguffile.shards import shard_paths

    if len(shard_paths(model)) > 1:
        return next_command("annotate", model, plan, "--in-place")
    return next_command("annotate", model, plan, "-o", f"{model.stem}-kv{model.suffix}")


def steps_to_a_plan(model: Path, shape: ModelShape) -> list[str]:
    """The commands that give ``model`` a plan."""
    from kvtuner_gguf.gguffile.tunable import tuning_obstacle

    made = ("plan", model, "--uniform", "q8_0") if tuning_obstacle(shape) else ("tune", model)
    plan = Path("cfg.json")
    return [next_command(*made, "-o", plan), annotating(model, plan)]


def print_next(command: str) -> None:
    """In one line, whatever the width: it is to be copied."""
    click.echo(f"next: {command}")
