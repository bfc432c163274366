"""Evaluation rows as a picture: KLD against true bits per value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.rows import OF_CENTERED, OF_PLAN, OF_UNIFORM
from kvtuner_gguf.report.figure import new_figure, save_figure, set_bits_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kvtuner_gguf.evaluation.rows import Row

# marker, colour and name in the legend
_STYLES = {
    OF_UNIFORM: ("o", "tab:gray", "uniform pairs"),
    OF_CENTERED: ("s", "tab:blue", "uniform pairs, centered"),
    OF_PLAN: ("D", "tab:red", "plans"),
}


def save_chart(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write a PNG of the mean KLD (log) over the bits. Rows without any divergence, such as f16, have no place in it.

    Raises `KvtunerError` where no row is left.
    """
    from kvtuner_gguf.report.labels import place_labels

    shown = [row for row in rows if row.kld_mean > 0]
    if not shown:
        raise KvtunerError("no row differs from the f16 cache, so there is nothing to draw: add --uniform or --config")
    figure = new_figure()
    axes = figure.add_subplot()
    for kind in _STYLES:
        _draw(axes, [row for row in shown if row.kind == kind], kind)
    set_bits_axis(axes)
    axes.set(ylabel="mean KLD against the f16 cache (nats)", title=title)
    axes.set_yscale("log")
    axes.margins(x=0.15, y=0.15)
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    place_labels(axes, [(row.bits_with_ends, row.kld_mean) for row in shown], [row.name for row in shown])
    save_figure(figure, path)


def _draw(axes: Axes, rows: Sequence[Row], kind: str) -> None:
    marker, color, label = _STYLES[kind]
    if rows:
        axes.scatter(
            [r.bits_with_ends for r in rows], [r.kld_mean for r in rows], marker=marker, color=color, label=label
        )
