"""Evaluation rows as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtuner_gguf.report.table import Column, print_table

if TYPE_CHECKING:
    from kvtuner_gguf.evaluation.rows import Row

_COLUMNS: tuple[Column[Row], ...] = (
    Column("cache K/V", lambda row: row.name),
    Column("bits/value", lambda row: f"{row.bits_per_value:.2f}", rank=5),
    Column("with ends", lambda row: f"{row.bits_with_ends:.3f}"),
    Column("bytes/token", lambda row: f"{row.kv_bytes_per_token}", rank=4),
    Column("MiB", lambda row: f"{row.kv_mib:.2f}", rank=3),
    Column("KLD mean", lambda row: f"{row.kld_mean:.5f}"),
    Column("+-", lambda row: "" if row.kld_se is None else f"{row.kld_se:.5f}"),
    Column("median", lambda row: f"{row.kld_median:.5f}", rank=6),
    Column("99.9 %", lambda row: f"{row.kld_p999:.4f}", rank=7),
    Column("same top %", lambda row: f"{row.same_top:.2f}", rank=1),
    Column("PPL", lambda row: f"{row.ppl:.4f}", rank=8),
    Column("PPL ratio", lambda row: f"{row.ppl_ratio:.5f}", rank=2),
)


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print one line per row to stdout."""
    print_table(_COLUMNS, rows, title)
