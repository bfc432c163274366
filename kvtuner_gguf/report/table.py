"""Tables on the terminal: where it is narrow columns go by their rank, where it is narrower a row becomes a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from kvtuner_gguf.report.terminal import console, has_width, print_text, visible

# columns that a frame takes beside what is in a cell, and once in a row
_FRAME, _EDGE = 3, 1

R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    """``rank`` 0 stays in every table; of the others the highest goes first."""

    header: str
    cell: Callable[[R], str]
    rank: int = 0


def print_table(columns: Sequence[Column[R]], rows: Sequence[R], title: str) -> None:
    """Print ``rows`` to stdout, the first column to the left; what a terminal has no room for is named below."""
    stdout = console()
    cells = [[visible(column.cell(row)) for row in rows] for column in columns]
    widths = [max(map(cell_len, [column.header, *texts])) for column, texts in zip(columns, cells, strict=True)]
    shown = _fitting(columns, widths, stdout.width) if has_width(stdout) else list(range(len(columns)))
    print_text(title)
    if shown is None:
        _print_records(columns, cells)
        return
    stdout.width = _total([widths[i] for i in shown])
    stdout.print(_framed(columns, cells, shown))
    left_out = [column.header for i, column in enumerate(columns) if i not in shown]
    if left_out:
        print_text(f"a wider terminal also has: {', '.join(left_out)}")


def _fitting(columns: Sequence[Column[R]], widths: Sequence[int], room: int) -> list[int] | None:
    """The columns that ``room`` has place for; None where not even those of rank 0 fit."""
    shown = list(range(len(columns)))
    while _total([widths[i] for i in shown]) > room:
        least = max(shown, key=lambda i: columns[i].rank)
        if not columns[least].rank:
            return None
        shown.remove(least)
    return shown


def _total(widths: Sequence[int]) -> int:
    return _EDGE + sum(width + _FRAME for width in widths)


def _framed(columns: Sequence[Column[R]], cells: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    table = Table()
    for i in shown:
        table.add_column(Text(columns[i].header), justify="right" if i else "left", no_wrap=True)
    for row in zip(*(cells[i] for i in shown), strict=True):
        table.add_row(*map(Text, row))
    return table


def _print_records(columns: Sequence[Column[R]], cells: Sequence[Sequence[str]]) -> None:
    """The first cell of each row, and below it a line for each of the others that is not empty."""
    first, *others = columns
    longest = max(cell_len(column.header) for column in others)
    for name, *texts in zip(*cells, strict=True):
        print_text(name or first.header)
        for column, text in zip(others, texts, strict=True):
            if text:
                print_text(f"  {column.header:<{longest}}  {text}")
