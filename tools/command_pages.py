#!/usr/bin/env python3
"""The pages of docs/commands/, one a command, out of what the commands say of themselves.

command_pages.py          writes them, and takes away those of commands that are gone
"""

from __future__ import annotations

import html
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from kvtuner_gguf.cli import main as program

FOLDER = Path(__file__).parents[1] / "docs" / "commands"
PROGRAM = "kvtuner-gguf"
INDEX = "README.md"
MARK = "<!-- Written by tools/command_pages.py: run `make docs-pages` after a change of a command. -->"


def pages(group: click.Group = program) -> dict[str, str]:
    """The text of each page by its file name; ``INDEX`` lists the others and has the options of all commands."""
    ctx = click.Context(group, info_name=PROGRAM)
    commands = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    shown = {name: command for name, command in commands.items() if command is not None and not command.hidden}
    texts = {f"{name}.md": _page(name, command, ctx) for name, command in shown.items()}
    return {INDEX: _index(group, shown), **texts}


def write(folder: Path = FOLDER) -> None:
    """Write the pages into ``folder``; other pages in it are removed."""
    texts = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)


def _page(name: str, command: click.Command, parent: click.Context) -> str:
    ctx = click.Context(command, info_name=name, parent=parent)
    usage = f"```\n{' '.join([PROGRAM, name, *command.collect_usage_pieces(ctx)])}\n```"
    return _joined([MARK, f"# {PROGRAM} {name}", usage, *_paragraphs(command.help), *_options(command)])


def _index(group: click.Group, commands: Mapping[str, click.Command]) -> str:
    rows = [f"| [{name}]({name}.md) | {_cell(_summary(command))} |" for name, command in commands.items()]
    table = _table("command", rows)
    return _joined([MARK, "# Commands", *_paragraphs(group.help), table, *_options(group)])


def _table(what: str, rows: Sequence[str]) -> str:
    return "\n".join([f"| {what} | what it does |", "|---|---|", *rows])


def _options(command: click.Command) -> list[str]:
    """A heading and a table of the options, or nothing where there are none."""
    options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    if not options:
        return []
    rows = [f"| {_names(option)} | {_cell(_meaning(option))} |" for option in options]
    return ["## Options", _table("option", rows)]


def _names(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag or option.count:
        return names
    return f"{names} {' or '.join(f'`{word}`' for word in _value(option).split('|'))}"


def _value(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return {"integer": "N", "integer range": "N", "float": "X", "float range": "X", "directory": "FOLDER"}.get(
        option.type.name, option.type.name.upper()
    )


def _meaning(option: click.Option) -> str:
    """The help, with the least value and the default where the program shows these."""
    words = [option.help or ""]
    least = None if option.count else getattr(option.type, "min", None)
    if least is not None:
        words.append(f"At least {least}.")
    default = _default(option)
    return " ".join([*words, f"Default: `{default}`."] if default else words)


def _default(option: click.Option) -> str:
    """The default that the program shows, or nothing."""
    value = option.to_info_dict()["default"]
    if isinstance(option.show_default, str):
        return option.show_default
    if not option.show_default or value is None:
        return ""
    if option.is_flag and option.secondary_opts:
        return (option.opts if value else option.secondary_opts)[0]
    return str(value)


def _summary(command: click.Command) -> str:
    """The first sentence of the help."""
    text = inspect.cleandoc(command.help or "").partition("\n\n")[0]
    return re.split(r"(?<=[.])\s", text)[0]


def _paragraphs(text: str | None) -> list[str]:
    """Help as Markdown: a paragraph is one line, one that click is told not to wrap is code."""
    clean = inspect.cleandoc(text or "").partition("\f")[0]
    return [_paragraph(part) for part in re.split(r"\n{2,}", clean.strip()) if part]


def _paragraph(part: str) -> str:
    if part.startswith("\b"):
        lines = part.lstrip("\b").strip("\n")
        return f"```\n{inspect.cleandoc(lines)}\n```"
    return textwrap.fill(_escaped(" ".join(part.split())), 120, break_long_words=False, break_on_hyphens=False)


def _cell(text: str) -> str:
    """``text`` for a table; readers of Markdown do not agree on what a bar in code is there, but on this."""
    code = re.sub(r"`([^`|]*[|][^`]*)`", lambda found: f"<code>{html.escape(found[1])}</code>", " ".join(text.split()))
    parts = re.split(r"(<code>.*?</code>)", code)
    return "".join(part.replace("|", "&#124;") if part.startswith("<code>") else _escaped(part, "|") for part in parts)


def _escaped(text: str, more: str = "") -> str:
    """``text`` so that none of it is taken for HTML or emphasis, but in code; nor for what is in ``more``."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(rf"([<*{more}])", r"\\\1", part) for part in parts)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write()
