"""The chart and its names."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.rows import KINDS, OF_CENTERED, OF_F16, OF_PLAN, OF_UNIFORM, Row, kind_of
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.front import Front, Point
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.chart import save_chart
from kvtuner_gguf.report.fronts import save_front_chart
from kvtuner_gguf.report.labels import place_labels
from kvtuner_gguf.report.numbers import with_error
from kvtuner_gguf.report.rows import print_rows

SHAPE = ModelShape("llama", (2, 2), 64, 64)
CENTERS = Centers.from_arrays([np.ones(2 * 64)] * 2)


def row(name: str, bits: float, kld: float, kind: str = OF_PLAN) -> Row:
    return Row(name, bits, bits, int(1440 * bits), kld, kld / 2, 20 * kld, 95.0, 13.0, 1.01, 4.5, kind=kind)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    for module in ("chart", "fronts"):
        monkeypatch.setattr(f"kvtuner_gguf.report.{module}.save_figure", lambda figure, path: figures.append(figure))
    return figures


def share(axes: Any, low: float, high: float) -> float:
    """How much of the width the bits from ``low`` to ``high`` take."""
    (left, _), (right, _) = axes.transAxes.inverted().transform(axes.transData.transform([(low, 1), (high, 1)]))
    return right - left


ROWS = [row("f16/f16", 16.0, 0.0), row("q8_0/q4_0", 6.5, 0.01), row("auto", 6.49, 0.0099), row("plan", 6.48, 0.0101)]


def test_png(tmp_path: Path) -> None:
    save_chart(ROWS, tmp_path / "chart.png", "title")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_kind_of_a_row_is_that_of_its_caches() -> None:
    of_pair = {pair: Plan.uniform(Pair.parse(pair), 2) for pair in ("f16", "q4_0")}
    mixed = Plan((Pair.parse("q8_0"), Pair.parse("q4_0")))
    assert kind_of(of_pair["f16"], SHAPE) == OF_F16
    assert kind_of(of_pair["q4_0"], SHAPE) == OF_UNIFORM
    assert kind_of(replace(of_pair["q4_0"], centers=CENTERS), SHAPE) == OF_CENTERED
    assert kind_of(mixed, SHAPE) == kind_of(replace(mixed, centers=CENTERS), SHAPE) == OF_PLAN
    bare = ModelShape("llama", (2, 0), 64, 64)
    assert kind_of(Plan((Pair.parse("q4_0"), F16)), bare) == OF_UNIFORM, "a layer without a cache does not count"


def test_rows_are_drawn_by_their_kind_whatever_they_are_called(drawn: list[Figure], tmp_path: Path) -> None:
    kinds = [kind for kind in KINDS if kind != OF_F16]
    rows = [row("q4_0/q4_0 centered ends 4+128:q8_0", 4 + i, 0.1, kind) for i, kind in enumerate(kinds)]
    save_chart(rows, tmp_path / "chart.png", "title")
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert legend == ["uniform pairs", "uniform pairs, centered", "plans"]


def test_two_to_six_bits_are_not_squeezed(drawn: list[Figure], tmp_path: Path) -> None:
    save_chart([row("a", 2.25, 0.1), row("b", 16, 0.001)], tmp_path / "chart.png", "title")
    points = [Point((Pair.parse(name),) * 2, loss) for name, loss in (("q2_nl", 0.2), ("q4_0", 0.1), ("f16", 0.001))]
    front = Front(SHAPE, "kld", tuple(points))
    save_front_chart(front, front.plan(points[1]), tmp_path / "front.png", "title")
    assert [share(figure.axes[0], 2.25, 6) > 0.38 for figure in drawn] == [True, True]


def test_the_front_is_drawn_beside_uniform_pairs(drawn: list[Figure], tmp_path: Path) -> None:
    points = [Point((Pair.parse(name),) * 2, loss) for name, loss in (("q4_0", 0.1), ("q8_0", 0.01))]
    uniform = (Point((Pair.parse("q5_1"), F16), 0.2), Point((Pair.parse("q8_0"),) * 2, 0.0))
    front = Front(ModelShape("llama", (2, 0), 64, 64), "kld", tuple(points), uniform=uniform)
    save_front_chart(front, front.plan(points[0]), tmp_path / "front.png", "title")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["front", "plan", "uniform pairs"]
    assert [text.get_text() for text in axes.texts] == ["q5_1/q5_1"], "what loses nothing has no place"


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(KvtunerError, match="nothing to draw"):
        save_chart(ROWS[:1], tmp_path / "chart.png", "title")
    assert not list(tmp_path.iterdir())


def test_names_of_close_points_do_not_overlap() -> None:
    figure = Figure(figsize=(8, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [(1.0 + i / 1000, 1.0 + i / 1000) for i in range(8)]
    axes.set(xlim=(0, 2), ylim=(0, 2))
    place_labels(axes, points, [f"a long name {i}" for i in range(8)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_table_says_how_sure_a_mean_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([replace(ROWS[2], kld_se=0.00021), ROWS[3]], "title")
    *_, known, unknown, _ = capsys.readouterr().out.splitlines()
    assert "0.00990 │ 0.00021" in known
    assert "0.01010 │         │" in unknown


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.002813, 0.000041, "0.00281 +- 0.00004"),
        (1.5, 0.3, "1.5 +- 0.3"),
        (120.0, 30.0, "120 +- 30"),
        (2e-6, 0.0, "2e-06"),
        (0.00281345, None, "0.00281"),
    ],
)
def test_numbers_have_the_digits_that_their_errors_leave(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


def test_table_has_a_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, "title")
    out = capsys.readouterr().out
    assert all(name in out for name in ("title", "f16/f16", "q8_0/q4_0", "auto", "0.00990", "1.01000"))
