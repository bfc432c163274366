"""What stdout and stderr are: how wide, and whether they understand escapes."""

from __future__ import annotations

import os
import textwrap

import click
from rich.console import Console


def console(stderr: bool = False) -> Console:
    """Of stdout or stderr; without any escapes where NO_COLOR is set."""
    colors = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, color_system=colors, markup=False, emoji=False, highlight=False)


def is_animated(stream: Console) -> bool:
    """Whether what was written can be replaced: a file keeps it all, and so does a dumb terminal."""
    return stream.file.isatty() and not stream.is_dumb_terminal


def print_text(text: str) -> None:
    """Print lines to stdout, broken between words where a terminal is narrower; a file has each line whole."""
    stdout = console()
    for line in text.splitlines():
        click.echo(wrapped(line, stdout.width) if stdout.is_terminal else line)


def wrapped(line: str, width: int) -> str:
    """``line`` in lines of ``width`` columns; a word that is longer stays whole."""
    return textwrap.fill(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
