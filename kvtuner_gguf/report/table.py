"""Evaluation rows as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from kvtuner_gguf.evaluation.rows import Row

# Wide enough for all columns where stdout is a file.
_FILE_WIDTH = 152

_COLUMNS = (
    ("cache K/V", lambda row: row.name),
    ("bits/value", lambda row: f"{row.bits_per_value:.2f}"),
    ("with ends", lambda row: f"{row.bits_with_ends:.3f}"),
    ("bytes/token", lambda row: f"{row.kv_bytes_per_token}"),
    ("MiB", lambda row: f"{row.kv_mib:.2f}"),
    ("KLD mean", lambda row: f"{row.kld_mean:.5f}"),
    ("+-", lambda row: "" if row.kld_se is None else f"{row.kld_se:.5f}"),
    ("median", lambda row: f"{row.kld_median:.5f}"),
    ("99.9 %", lambda row: f"{row.kld_p999:.4f}"),
    ("same top %", lambda row: f"{row.same_top:.2f}"),
    ("PPL", lambda row: f"{row.ppl:.4f}"),
    ("PPL ratio", lambda row: f"{row.ppl_ratio:.5f}"),
)


def print_rows(rows: Iterable[Row], title: str) -> None:
    """Print one line per row to stdout."""
    table = Table(title=title, title_justify="left")
    for i, (header, _) in enumerate(_COLUMNS):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in _COLUMNS))
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table)
