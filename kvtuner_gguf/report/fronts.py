"""The front as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kvtuner_gguf.plan.front import Front, Point, index_of
from kvtuner_gguf.plan.pairs import F16
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.figure import new_figure, save_figure, set_bits_axis
from kvtuner_gguf.report.labels import place_labels
from kvtuner_gguf.report.table import Column, print_table


def print_front(front: Front, plan: Plan, errors: Sequence[float | None] = ()) -> None:
    """A row per point, the one of ``plan`` marked; ``errors`` are the standard errors of the losses, where known."""
    title = f"front on the tuning text ({front.measure})"
    if front.sizes.beside:
        title += f", {front.sizes.beside} counted in {front.n_ctx} tokens"
    chosen = index_of(front, plan.pairs)
    columns = (
        Column("", lambda i: "plan" if i == chosen else ""),
        Column("true bits", lambda i: f"{front.bits(front.points[i]):.3f}", rank=1),
        Column("with ends", lambda i: f"{front.bits_with_ends(front.points[i]):.3f}"),
        Column("payload bits", lambda i: f"{front.payload_bits(front.points[i]):.3f}", rank=4),
        Column("bytes per token", lambda i: f"{front.bytes_per_token(front.points[i])}", rank=2),
        Column(front.measure, lambda i: f"{front.points[i].loss:.5f}"),
        Column("+-", lambda i: "" if errors[i] is None else f"{errors[i]:.5f}"),
        Column("sum of prices", lambda i: _priced(front.points[i]), rank=3),
    )
    columns = columns if any(errors) else tuple(column for column in columns if column.header != "+-")
    print_table(columns, range(len(front.points)), title)


def _priced(point: Point) -> str:
    return "" if point.priced is None else f"{point.priced:.5f}"


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
