"""The keys of each layer before and after centering, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.report.figure import new_figure, save_figure
from kvtuner_gguf.report.table import Column, print_table

_COLUMNS: tuple[Column[tuple[float, ...]], ...] = (
    Column("layer", lambda row: f"{row[0]}"),
    Column("largest key", lambda row: f"{row[1]:.2f}"),
    Column("centered", lambda row: f"{row[2]:.2f}"),
    Column("rms key", lambda row: f"{row[3]:.3f}", rank=1),
    Column("rms centered", lambda row: f"{row[4]:.3f}", rank=1),
)


def print_keys(spread: KeySpread) -> None:
    """Print a line per layer to stdout."""
    sides = (spread.largest, spread.largest_centered, spread.rms, spread.rms_centered)
    print_table(_COLUMNS, list(zip(range(spread.n_layer), *sides, strict=True)), "keys before and after centering")


def save_key_chart(spread: KeySpread, path: Path, title: str) -> None:
    """Write a PNG of the largest and the root mean square key of each layer, before and after."""
    figure = new_figure()
    axes = figure.add_subplot()
    layers = range(spread.n_layer)
    lines = (
        (spread.largest, "largest key", "tab:red", "--"),
        (spread.largest_centered, "largest key, centered", "tab:red", "-"),
        (spread.rms, "rms key", "tab:blue", "--"),
        (spread.rms_centered, "rms key, centered", "tab:blue", "-"),
    )
    for values, label, color, style in lines:
        axes.plot(layers, values, color=color, linestyle=style, marker=".", label=label)
    axes.set(xlabel="layer", ylabel="magnitude", title=title)
    axes.set_yscale("log")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    save_figure(figure, path)
