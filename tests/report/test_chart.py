"""The chart and its names."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.report.chart import save_chart
from kvtuner_gguf.report.labels import place_labels
from kvtuner_gguf.report.numbers import with_error
from kvtuner_gguf.report.rows import print_rows


def row(name: str, bits: float, kld: float) -> Row:
    return Row(name, bits, bits, int(1440 * bits), kld, kld / 2, 20 * kld, 95.0, 13.0, 1.01, 4.5)


ROWS = [row("f16/f16", 16.0, 0.0), row("q8_0/q4_0", 6.5, 0.01), row("auto", 6.49, 0.0099), row("plan", 6.48, 0.0101)]


def test_png(tmp_path: Path) -> None:
    save_chart(ROWS, tmp_path / "chart.png", "title")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


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
