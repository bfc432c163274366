"""A figure that needs no display, and its PNG, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_gguf.files import atomicfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# where the axis of bits has its ticks
BITS_TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32)


def new_figure() -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_bits_axis(axes: Axes) -> None:
    """The true bits of caches along x, by ratios: 2 to 6, where plans are, take as much room as they matter."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(BITS_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("true bits per cached value")


def save_figure(figure: Figure, path: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with atomicfile.replacing(path) as file:
        file.write(data.getvalue())
