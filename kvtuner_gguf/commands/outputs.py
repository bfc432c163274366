"""What a command will write is checked before it reads or computes anything."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile


def check_outputs(*outputs: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Raise `KvtunerError` where an output cannot be replaced, is one of the ``inputs``, or is named twice.

    What is not asked for is None. Says on stderr where other names of a file keep what it held.
    """
    sources = [path for path in inputs if path is not None]
    checked: list[Path] = []
    for out in outputs:
        if out is None:
            continue
        atomicfile.check_target(out)
        if any(_is_same(out, source) for source in sources):
            raise KvtunerError(f"{out} would be overwritten, and it is read: choose another target with -o")
        if any(_is_same(out, other) for other in checked):
            raise KvtunerError(f"{out} is to hold two outputs: give each a name of its own")
        checked.append(out)
        _tell_other_names(out)


def _is_same(a: Path, b: Path) -> bool:
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    return a.exists() and b.exists() and a.samefile(b)


def _tell_other_names(out: Path) -> None:
    others = out.stat().st_nlink - 1 if out.exists() else 0
    if others > 0:
        names = "another name" if others == 1 else f"{others} other names"
        click.echo(f"{out} has {names} (hard links), which will keep what it holds now", err=True)
