"""The charts of a page: fronts, rows of `eval`, keys of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvtuner_gguf.evaluation.rows import OF_CENTERED, OF_PLAN, OF_UNIFORM, Row
from kvtuner_gguf.plan.front import Front, Point, index_of
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.fronts import losing, uniform_name
from kvtuner_gguf.report.html.axes import Chart, Series
from kvtuner_gguf.report.html.markup import Markup

BITS = "true bits per cached value"
# what a logarithmic axis has a place for
_LEAST, _MOST = 1e-12, 1e12
_STYLES = {
    OF_UNIFORM: ("uniform pairs", "is-uniform", "circle"),
    OF_CENTERED: ("uniform pairs, centered", "is-centered", "square"),
    OF_PLAN: ("plans", "is-plan", "diamond"),
}


def front_chart(fronts: Mapping[str, Front], plans: Mapping[str, Plan]) -> Markup:
    """``fronts`` of one measure, their uniform pairs, and those of ``plans`` that are on one of them."""
    series: list[Series] = []
    for name, front in fronts.items():
        of_paper = front.provenance.get("method") == "paper"
        title = f"{name}, the paper's method" if of_paper else name
        style, shape = ("is-paper", "triangle") if of_paper else ("is-front", "circle")
        series.append(Series(title, _spots(front, front.points), style, shape, line=True))
        series += _uniform(front)
        series += _chosen(front, plans)
    series = [one for one in series if one.points]
    measure = next(iter(fronts.values())).measure
    return Chart(series, BITS, f"{measure} on the tuning text").draw("losses over bits") if series else Markup("")


def _spots(front: Front, points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(front.bits_with_ends(point), point.loss) for point in _drawn(points)]


def _drawn(points: Sequence[Point]) -> list[Point]:
    return [point for point in losing(points) if _has_place(point.loss)]


def _has_place(value: float) -> bool:
    return _LEAST <= value <= _MOST


def _uniform(front: Front) -> list[Series]:
    names = [uniform_name(point) for point in _drawn(front.uniform)]
    return [Series("uniform pairs", _spots(front, front.uniform), "is-centered", "square", names=names)]


def _chosen(front: Front, plans: Mapping[str, Plan]) -> list[Series]:
    found = {name: index_of(front, plan.pairs) for name, plan in plans.items() if plan.model == front.model}
    return [
        Series(name, _spots(front, [front.points[i]]), "is-plan", "diamond")
        for name, i in found.items()
        if i is not None
    ]


def row_chart(rows: Sequence[Row]) -> Markup:
    """``rows`` that differ from the f16 cache, each with its name in short."""
    series = []
    for kind, (title, style, shape) in _STYLES.items():
        shown = [
            row for row in rows if row.kind == kind and _has_place(row.kld_mean) and _has_place(row.bits_with_ends)
        ]
        points = [(row.bits_with_ends, row.kld_mean) for row in shown]
        if points:
            series.append(Series(title, points, style, shape, names=[_short_name(row) for row in shown]))
    return Chart(series, BITS, "mean KLD (nats)").draw("divergences over bits") if series else Markup("")


def _short_name(row: Row) -> str:
    """The pair alone of a uniform one: colours tell the rest, and the table has the whole name."""
    if row.kind == OF_PLAN:
        return row.name
    return next((word for word in row.name.split() if "/" in word), row.name)


def key_chart(spread: KeySpread) -> Markup:
    """The largest and the root mean square key of each layer, before and after centering."""
    lines = (
        ("largest", spread.largest, "is-before"),
        ("largest, centered", spread.largest_centered, "is-after"),
        ("rms", spread.rms, "is-before-rms"),
        ("rms, centered", spread.rms_centered, "is-after-rms"),
    )
    series = [
        Series(title, points, style, line=True)
        for title, values, style in lines
        if (points := [(float(il), value) for il, value in enumerate(values) if _has_place(value)])
    ]
    ticks = [float(il) for il in range(0, spread.n_layer, max(1, spread.n_layer // 10))]
    return Chart(series, "layer", "size of keys", ticks, x_is_log=False).draw("sizes of keys") if series else Markup("")
