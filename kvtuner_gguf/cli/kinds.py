"""Kinds of arguments: what they stand for is checked as the command line is read, before anything is loaded.

What is refused here is wrong usage, and ends a command with 2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from kvtuner_gguf.cli.failures import one_line
from kvtuner_gguf.cli.texts import text_and_weight
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.inputs import unreadable
from kvtuner_gguf.gguffile.chosen_ends import NONE, parse_ends
from kvtuner_gguf.gguffile.nomodel import no_gguf_at
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES
from kvtuner_gguf.plan.typed import typed_list, typed_pair


class Kind(click.ParamType):
    """What ``parse``, which may raise `KvtunerError`, makes of a text; ``complete`` is what a shell offers for one."""

    def __init__(
        self, name: str, parse: Callable[[str], Any], complete: Callable[[str], list[CompletionItem]] | None = None
    ) -> None:
        self.name = name
        self._parse = parse
        self._complete = complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or (ctx is not None and ctx.resilient_parsing):
            return value
        try:
            return self._parse(value)
        except KvtunerError as err:
            raise click.BadParameter(one_line(err), ctx, param) from err

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._complete(incomplete) if self._complete else []


def _read(refuses: Callable[[Path], str | None], text: str) -> Path:
    path = _path(text)
    if why := refuses(path):
        raise KvtunerError(f"{path}: {why}")
    return path


def _path(text: str) -> Path:
    if not text:
        raise KvtunerError("the name is empty: give that of a file")
    return Path(text)


def _written(text: str) -> Path:
    path = _path(text)
    atomicfile.check_target(path)
    return path


def _weighed(text: str) -> tuple[Path, float]:
    path, weight = text_and_weight(text)
    return _read(unreadable, str(path)), weight


def _ends(text: str) -> str:
    if text != NONE:
        parse_ends(text)
    return text


def _fixed(text: str) -> str:
    from kvtuner_gguf.tuning.fixed import parse_fixed

    parse_fixed([text])
    return text


def _files(incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def _types(incomplete: str) -> list[CompletionItem]:
    """Cache types for what stands after the last sign that parts them."""
    start = incomplete[: 1 + max(incomplete.rfind(sign) for sign in "/,=")]
    return [CompletionItem(start + name) for name in CACHE_TYPES if (start + name).startswith(incomplete)]


def _unreadable_or_folder(path: Path) -> str | None:
    return None if path.is_dir() else unreadable(path)


INPUT = Kind("file", lambda text: _read(unreadable, text), _files)
FILE_OR_FOLDER = Kind("file", lambda text: _read(_unreadable_or_folder, text), _files)
MODEL = Kind("file", lambda text: _read(no_gguf_at, text), _files)
OUTPUT = Kind("file", _written, _files)
TEXT = Kind("text", _weighed, _files)
PAIR = Kind("pair", typed_pair, _types)
TYPES = Kind("types", typed_list, _types)
ENDS = Kind("ends", _ends)
FIX = Kind("layers", _fixed, _types)

FOLDER = click.Path(path_type=Path, file_okay=False)
COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
# a chunk of fewer tokens says nothing
N_TOKENS = click.IntRange(min=16)
# what torch and numpy both take
SEED = click.IntRange(0, 2**32 - 1)
