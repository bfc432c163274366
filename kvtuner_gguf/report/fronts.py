"""The front as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kvtuner_gguf.plan.front import Front, Point, index_of
from kvtuner_gguf.plan.pairs import F16
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.figure import new_figure, save_figure, set_bits_axis
from kvtuner_gguf.report.labels import place_labels


def print_front(front: Front, plan: Plan) -> None:
    """A row per point, the one of ``plan`` marked."""
    title = f"front on the tuning text ({front.measure})"
    if front.sizes.beside:
        title += f", {front.sizes.beside} counted in {front.n_ctx} tokens"
    table = Table(title=title)
    for name in ("", "true bits", "with ends", "payload bits", "bytes per token", front.measure, "sum of prices"):
        table.add_column(name, justify="right")
    chosen = index_of(front, plan.pairs)
    for i, point in enumerate(front.points):
        priced = "" if point.priced is None else f"{point.priced:.5f}"
        mark = "plan" if i == chosen else ""
        bits = (f"{n:.3f}" for n in (front.bits(point), front.bits_with_ends(point), front.payload_bits(point)))
        table.add_row(mark, *bits, f"{front.bytes_per_token(point)}", f"{point.loss:.5f}", priced)
    Console().print(table)


def save_front_chart(front: Front, plan: Plan, path: Path, title: str) -> None:
    """Write a PNG of the loss (log) over the bits, uniform pairs beside the front.

    Points that lose nothing have no place in it.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    shown, uniform = losing(front.points), losing(front.uniform)
    axes.plot([front.bits_with_ends(p) for p in shown], [p.loss for p in shown], "o-", color="tab:gray", label="front")
    chosen = index_of(front, plan.pairs)
    if chosen is not None and front.points[chosen].loss > 0:
        point: Point = front.points[chosen]
        axes.plot([front.bits_with_ends(point)], [point.loss], "D", color="tab:red", label="plan")
    spots = [(front.bits_with_ends(p), p.loss) for p in uniform]
    if spots:
        axes.plot(*zip(*spots, strict=True), "s", color="tab:blue", label="uniform pairs")
    set_bits_axis(axes)
    axes.set(ylabel=f"{front.measure} on the tuning text", title=title)
    axes.set_yscale("log")
    axes.margins(x=0.1, y=0.1)
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    place_labels(axes, spots, [uniform_name(point) for point in uniform])
    save_figure(figure, path)


def losing(points: Iterable[Point]) -> list[Point]:
    """Those of ``points`` that a logarithmic axis has a place for."""
    return [point for point in points if point.loss > 0]


def uniform_name(point: Point) -> str:
    """The one pair that the layers with a cache have."""
    return str(next((pair for pair in point.pairs if pair != F16), F16))
