"""What commands that work long have in common: how much they say, and what becomes of them after Ctrl-C."""

from __future__ import annotations

import copy
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click

from kvtuner_gguf.cli.failures import Failure

# those that may take more than a second
LONG = (
    "annotate",
    "center",
    "cluster",
    "demo",
    "eval",
    "fetch-model",
    "plan",
    "profile",
    "search",
    "strip",
    "tune",
)
# where a context has what to type after an interrupt
_HINT = "kvtuner_gguf.hint"


class Interrupted(Failure):
    """Ctrl-C, as shells number it."""

    exit_code = 130


def interrupted(as_json: bool) -> Interrupted:
    """What to say of the command that was interrupted."""
    anew = "no file is left half written; the same command begins anew"
    hint = click.get_current_context().meta.get(_HINT, anew)
    return Interrupted(f"interrupted: {hint}", "interrupted", hint, as_json)


def goes_on_from(folder: Path | None, fresh: str | None = None) -> None:
    """Note that ``folder`` keeps what the command has finished; None where nothing does.

    ``fresh``: an option that was given, and with which the same command would begin anew.
    """
    if folder is not None:
        command = f"the same command without {fresh}" if fresh else "the same command"
        click.get_current_context().meta[_HINT] = f"{command} goes on from what is in {folder}"


def talking(command: click.Command) -> click.Command:
    """``command`` with -q and -v, whose stages are told as they say."""
    talker, work = copy.copy(command), cast("Callable[..., Any]", command.callback)
    talker.params = [
        *command.params,
        click.Option(["-q", "--quiet"], is_flag=True, help="Print results and errors alone."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Also tell when stages begin, and what llama.cpp logs."),
    ]

    @functools.wraps(work)
    def talked(quiet: bool, verbose: bool, **options: Any) -> Any:
        from kvtuner_gguf.report.stages import Level, talk

        if quiet and verbose:
            raise click.UsageError("-q and -v are opposites: give one of them")
        if verbose:
            _show_native_log()
        with talk(Level.QUIET if quiet else Level.VERBOSE if verbose else Level.NORMAL):
            return work(**options)

    talker.callback = talked
    return talker


def flags() -> list[str]:
    """How the command that runs was told to talk, for those that it runs itself."""
    given = click.get_current_context().params
    return [flag for flag, name in (("-q", "quiet"), ("-v", "verbose")) if given[name]]


def _show_native_log() -> None:
    from kvtuner_gguf.engine.llama.nativelog import LOGGER

    handler = logging.StreamHandler(sys.stderr)
    handler.terminator = ""  # llama.cpp ends its lines itself
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.DEBUG)
