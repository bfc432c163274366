"""How a command that fails ends: with one line on stderr, or with an object on stdout where it was asked for JSON.

It ends with 2 where the command line is wrong, or names a file that cannot be read or written, and with 1 where
anything else is.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from kvtuner_gguf.errors import KvtunerError, in_parts


class Failure(click.ClickException):
    """What is wrong and, as ``hint``, what to do about it, if that is known; the message has both."""

    def __init__(self, message: str, error: str, hint: str | None, as_json: bool) -> None:
        super().__init__(message)
        self._object = {"error": error, "hint": hint} if as_json else None

    def show(self, file: IO[Any] | None = None) -> None:
        from kvtuner_gguf.report.terminal import print_text

        if self._object is None:
            print_text(f"Error: {self.format_message()}", stderr=True)
        else:
            click.echo(json.dumps(self._object))


class WrongUsage(Failure):
    """A `Failure` of the command line."""

    exit_code = 2


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether the command line ``words`` have the option --json, as far as that can be told before they are read."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


@contextmanager
def wrong_usage() -> Generator[None]:
    """What is refused in here is the command line."""
    try:
        yield
    except KvtunerError as err:
        raise click.UsageError(one_line(err)) from err


def failure_of(err: KvtunerError | click.ClickException, as_json: bool) -> Failure:
    """What to raise for ``err``, of this package or of click."""
    if isinstance(err, KvtunerError):
        message = one_line(err)
        return Failure(message, *in_parts(message), as_json)
    message = " ".join(line.strip() for line in err.format_message().splitlines()).rstrip(".")
    kind = WrongUsage if err.exit_code == WrongUsage.exit_code else Failure
    if isinstance(err.__cause__, KvtunerError):
        return kind(message, *in_parts(message), as_json)
    context = getattr(err, "ctx", None) or click.get_current_context(silent=True)
    if context is None:
        return kind(message, message, None, as_json)
    hint = f"see '{context.command_path} --help'"
    return kind(f"{message}: {hint}", message, hint, as_json)


def unprinted(err: OSError) -> KvtunerError:
    """What to raise where stdout takes no more."""
    return KvtunerError(f"the result cannot be printed: {err.strerror or err}; send it elsewhere")


def one_line(err: KvtunerError) -> str:
    return " ".join(str(err).split())
