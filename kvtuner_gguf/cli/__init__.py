"""The command line. Each command is in a file of its name, and imports what is heavy when it runs."""

from __future__ import annotations

import errno
import importlib
from difflib import get_close_matches

import click

from kvtuner_gguf import __version__
from kvtuner_gguf.cli.failures import asks_for_json, failure_of, unprinted
from kvtuner_gguf.cli.helptext import Context
from kvtuner_gguf.cli.talk import LONG, interrupted, talking
from kvtuner_gguf.errors import KvtunerError

COMMANDS = (
    "annotate",
    "center",
    "cluster",
    "completion",
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
# characters that no first sentence of a help has
SENTENCE = 1000
# where a context keeps whether its command was asked for JSON
AS_JSON = "kvtuner_gguf.as_json"


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for; prints errors as one line, or as JSON."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        word = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"kvtuner_gguf.cli.{word}"), f"{word}_command")
        command.context_class = Context
        return talking(command) if cmd_name in LONG else command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The whole first sentence of each command, of which click would cut the end."""
        commands = [(name, self.get_command(ctx, name)) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(SENTENCE)) for name, found in commands if found])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        name = args[0]
        like = [] if name in COMMANDS or name.startswith("-") else get_close_matches(name, COMMANDS, n=1)
        if like:
            ctx.fail(f"No such command {name!r}. Did you mean {like[0]!r}?")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[AS_JSON] = asks_for_json(args)
        try:
            return super().parse_args(ctx, args)
        except (click.NoSuchOption, click.BadOptionUsage) as err:
            raise failure_of(err, ctx.meta[AS_JSON]) from err

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (KvtunerError, click.ClickException) as err:
            raise failure_of(err, ctx.meta[AS_JSON]) from err
        except KeyboardInterrupt as err:
            raise interrupted(ctx.meta[AS_JSON]) from err
        except OSError as err:
            if err.filename is not None or err.errno == errno.EPIPE:  # click ends quietly for who reads no further
                raise
            raise failure_of(unprinted(err), as_json=False) from err  # on stderr: stdout takes nothing


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvtuner-gguf")
def main() -> None:
    """Per-layer K and V cache types for llama.cpp: tune them, write them into the GGUF, measure them.

    A command ends with 0 where it did what was asked, with 2 where the command line is wrong, with 1 where anything
    else is. With --json the error, too, is an object on stdout: what is wrong as "error", what to do as "hint".
    """
