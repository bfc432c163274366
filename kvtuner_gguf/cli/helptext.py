"""Help in terminals that are narrower than what click writes at least."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

import click

# columns of a text at most, beside a margin; narrower than this, names of options leave their help more room
MOST, MARGIN, NARROW = 80, 2, 60


class HelpText(click.HelpFormatter):
    """As wide as the terminal, up to `MOST` columns."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:
        columns = min(shutil.get_terminal_size().columns, max_width or MOST)
        super().__init__(indent_increment, width or columns - MARGIN, max_width)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, min(col_max, self.width // 3) if self.width < NARROW else col_max, col_spacing)


class Context(click.Context):
    """Of all commands."""

    formatter_class = HelpText
