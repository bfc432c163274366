"""Progress bars on stderr, where that is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from kvtuner_gguf.progress import Progress


@contextmanager
def byte_progress(title: str) -> Iterator[Progress]:
    """A callback for bytes done and bytes in all that moves a bar."""
    with _progress(title, DownloadColumn()) as show:
        yield show


@contextmanager
def step_progress(title: str) -> Iterator[Progress]:
    """A callback for steps done and steps in all that moves a bar."""
    with _progress(title, MofNCompleteColumn()) as show:
        yield show


@contextmanager
def _progress(title: str, amount: ProgressColumn) -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
