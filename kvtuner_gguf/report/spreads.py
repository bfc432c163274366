"""The keys of each layer before and after centering, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.report.figure import new_figure, save_figure

_HEADER = f"{'layer':>5} {'largest key':>12} {'centered':>10} {'rms key':>10} {'centered':>10}"


def key_table(spread: KeySpread) -> str:
    """One line per layer."""
    rows = zip(spread.largest, spread.largest_centered, spread.rms, spread.rms_centered, strict=True)
    lines = [f"{il:>5} {a:>12.2f} {b:>10.2f} {c:>10.3f} {d:>10.3f}" for il, (a, b, c, d) in enumerate(rows)]
    return "\n".join([_HEADER, *lines])


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
