"""The command line. Each command is in a file of its name, and imports what is heavy when it runs."""

from __future__ import annotations

import importlib

import click

from kvtuner_gguf import __version__
from kvtuner_gguf.errors import KvtunerError

COMMANDS = (
    "annotate",
    "center",
    "cluster",
    "demo",
    "eval",
    "fetch-model",
    "import-kvtuner",
    "inspect",
    "plan",
    "profile",
    "prune",
    "report",
    "search",
    "strip",
    "tune",
    "verify",
)


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for; prints errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        word = cmd_name.replace("-", "_")
        return getattr(importlib.import_module(f"kvtuner_gguf.cli.{word}"), f"{word}_command")

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KvtunerError as err:
            raise click.ClickException(" ".join(str(err).split())) from err


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="kvtuner-gguf")
def main() -> None:
    """Per-layer K and V cache types for llama.cpp: tune them, write them into the GGUF, measure them."""
