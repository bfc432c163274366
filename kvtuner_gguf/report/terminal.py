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


def has_width(stream: Console) -> bool:
    """Whether lines have an end: those of a file have none, also where it is to have colors."""
    return stream.file.isatty()


def is_animated(stream: Console) -> bool:
    """Whether what was written can be replaced: a file keeps it all, and so does a dumb terminal."""
    return has_width(stream) and not stream.is_dumb_terminal


def print_text(text: str, stderr: bool = False) -> None:
    """Print lines, broken between words where a terminal is narrower; a file has each line whole."""
    stream = console(stderr)
    for line in map(visible, text.splitlines()):
        click.echo(wrapped(line, stream.width) if has_width(stream) else line, err=stderr)


def visible(line: str) -> str:
    """``line`` with escapes in place of what a terminal obeys or hides: files bring texts of anyone's."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def wrapped(line: str, width: int) -> str:
    """``line`` in lines of ``width`` columns; a word that is longer stays whole."""
    return textwrap.fill(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
