"""A figure that needs no display, and its PNG, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_gguf.files import atomicfile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure() -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with atomicfile.replacing(path) as file:
        file.write(data.getvalue())
