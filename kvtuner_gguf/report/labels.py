"""Names beside points in a chart, placed so that none covers another name or a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_POINT_RADIUS = 6  # pixels that a marker covers around its centre
_FIRST_GAP, _STEP, _STEPS = 8, 13, 10  # points between a marker and its name


def place_labels(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write ``names`` beside ``points`` (data coordinates). Call it once the limits and scales are final."""
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    figure.draw_without_rendering()
    centres = axes.transData.transform(points)
    taken = [Bbox.from_extents(x, y, x, y).padded(_POINT_RADIUS) for x, y in centres]
    taken.extend(legend.get_window_extent() for legend in [axes.get_legend()] if legend)
    for point, name in zip(points, names, strict=True):
        taken.append(_place(axes, point, name, taken))


def _place(axes: Axes, point: tuple[float, float], name: str, taken: Sequence[Bbox]) -> Bbox:
    """Put one name at the nearest free place, or at the last one tried; returns the box that it takes."""
    line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    label = axes.annotate(
        name, point, xytext=(0, 0), textcoords="offset points", va="center", fontsize=9, arrowprops=line
    )
    for dx, dy in _offsets():
        label.set(position=(dx, dy), ha="left" if dx > 0 else "right" if dx < 0 else "center")
        box = _extent(label)
        if _inside(axes.get_window_extent(), box) and not any(box.overlaps(other) for other in taken):
            break
    return box


def _extent(label: Annotation) -> Bbox:
    from matplotlib.text import Text

    figure: Any = label.figure
    label.update_positions(figure.canvas.get_renderer())
    return Text.get_window_extent(label)  # the name alone, without the line to its point


def _inside(outer: Bbox, box: Bbox) -> bool:
    return outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1


def _offsets() -> Iterator[tuple[float, float]]:
    """From near to far: beside the point, then above and below it on either side."""
    for step in range(_STEPS):
        for dy in (step * _STEP, -step * _STEP):
            for dx in (_FIRST_GAP, -_FIRST_GAP, 0):
                if dx or dy:
                    yield dx * (1 + step / 2), dy
