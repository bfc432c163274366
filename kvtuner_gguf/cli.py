"""The command line. Each command lives in `kvtuner_gguf.commands` and imports what is heavy when it runs."""

from __future__ import annotations

import importlib

import click

from kvtuner_gguf import __version__
from kvtuner_gguf.errors import KvtunerError

COMMANDS = {
    "annotate": "annotate",
    "center": "center",
    "cluster": "stages",
    "demo": "demo",
    "eval": "evaluate",
    "fetch-model": "fetch",
    "import-kvtuner": "published",
    "inspect": "inspect",
    "profile": "tune",
    "prune": "stages",
    "search": "stages",
    "strip": "annotate",
    "tune": "tune",
    "verify": "inspect",
}


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for; prints errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"kvtuner_gguf.commands.{COMMANDS[name]}")
        return getattr(module, f"{name.replace('-', '_')}_command")

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KvtunerError as err:
            raise click.ClickException(" ".join(str(err).split())) from err


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="kvtuner-gguf")
def main() -> None:
    """Per-layer K and V cache types for llama.cpp: tune them, write them into the GGUF, measure them."""
