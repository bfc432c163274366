"""Logarithmic and even axes, and charts of points on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from kvtuner_gguf.report.figure import BITS_TICKS
from kvtuner_gguf.report.html.markup import Markup, element, shortened, svg, text, tip

# units of a chart; a letter of its text is about LETTER wide, a wide one or one of another script at most twice that
WIDTH, HEIGHT = 400, 290
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 40
LETTER, LINE = 6.2, 12
LONGEST = 26
_SIGNS = {"circle": "●", "square": "■", "diamond": "◆", "triangle": "▲"}


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` between the units ``start`` and ``end``, with ``ticks`` in between."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    is_log: bool = True

    def at(self, value: float) -> float:
        low, high, value = map(math.log if self.is_log else float, (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def within(self) -> list[float]:
        """The ticks that lie on the axis."""
        return [tick for tick in self.ticks if self.low <= tick <= self.high]


def log_axis(values: Iterable[float], start: float, end: float, ticks: Sequence[float] = ()) -> Axis:
    """Around positive ``values``, with some room; without ``ticks`` one at each power of ten."""
    low, high = _with_room(values)
    return Axis(low, high, start, end, ticks or _decades(low, high))


def _with_room(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    room = max((max(found) / min(found)) ** 0.08, 1.1)
    return min(found) / room, max(found) * room


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in ((1,) if high / low > 50 else (1, 2, 5))]


@dataclass(frozen=True)
class Series:
    """Points ``(x, y)`` with a name and a ``shape``; ``style`` is their class, a ``line`` goes through them.

    ``names``: what stands beside each point, empty for nothing.
    """

    title: str
    points: Sequence[tuple[float, float]]
    style: str
    shape: str = "circle"
    line: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """``series`` over ``x_title``; both axes are logarithmic unless ``x_ticks`` of an even axis are given."""

    series: Sequence[Series]
    x_title: str
    y_title: str
    x_ticks: Sequence[float] = BITS_TICKS
    x_is_log: bool = True

    @cached_property
    def x(self) -> Axis:
        values = [x for one in self.series for x, _ in one.points]
        if self.x_is_log:
            return log_axis(values, LEFT, WIDTH - RIGHT, self.x_ticks)
        return Axis(min(values) - 0.5, max(values) + 0.5, LEFT, WIDTH - RIGHT, self.x_ticks, is_log=False)

    @cached_property
    def y(self) -> Axis:
        return log_axis((y for one in self.series for _, y in one.points), HEIGHT - BOTTOM, TOP)

    def draw(self, label: str) -> Markup:
        """The picture with its legend below."""
        marks = [self._series(one) for one in self.series]
        picture = svg(WIDTH, HEIGHT, label, self._grid(), *marks, self._names(), class_="chart")
        return element("figure", picture, element("figcaption", *map(_legend, self.series)))

    def _grid(self) -> Markup:
        parts: list[Markup] = []
        for tick in _spread(self.x):
            at = self.x.at(tick)
            parts.append(element("path", d=f"M{at:.1f} {TOP}V{HEIGHT - BOTTOM}", class_="grid"))
            parts.append(text(at, HEIGHT - BOTTOM + 14, f"{tick:g}", "tick", "middle"))
        for tick in self.y.within():
            at = self.y.at(tick)
            parts.append(element("path", d=f"M{LEFT} {at:.1f}H{WIDTH - RIGHT}", class_="grid"))
            parts.append(text(LEFT - 5, at + 3.5, f"{tick:.0e}" if tick < 1e-3 else f"{tick:g}", "tick", "end"))
        turned = element(
            "text",
            shortened(self.y_title, LONGEST),
            class_="axis",
            transform=f"translate(11 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)",
        )
        return element("g", *parts, text((LEFT + WIDTH) / 2, HEIGHT - 8, self.x_title, "axis"), turned)

    def _series(self, one: Series) -> Markup:
        spots = [(self.x.at(x), self.y.at(y)) for x, y in one.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        names = one.names or [one.title] * len(spots)
        line = [element("path", d=path, class_="line")] if one.line and spots else []
        marks = [
            element("path", tip(f"{name}: {x:.4g}, {y:.3g}"), d=_outline(one.shape, *spot), class_="mark")
            for name, spot, (x, y) in zip(names, spots, one.points, strict=True)
        ]
        return element("g", *line, *marks, class_=one.style)

    def _names(self) -> Markup:
        """The names of points, each at the nearest place where it covers no other name and no point."""
        points = [
            (self.x.at(x), self.y.at(y), name)
            for one in self.series
            for (x, y), name in zip(one.points, one.names or [""] * len(one.points), strict=True)
        ]
        taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points]
        parts: list[Markup] = []
        for x, y, name in points:
            if name:
                box = _place(x, y, shortened(name, LONGEST), taken)
                taken.append(box)
                parts.append(text(box.left, box.bottom - 3, shortened(name, LONGEST), "name"))
        return element("g", *parts)


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    @property
    def is_inside(self) -> bool:
        return self.left >= LEFT and self.right <= WIDTH - 2 and self.top >= 2 and self.bottom <= HEIGHT - BOTTOM


def _place(x: float, y: float, name: str, taken: Sequence[Box]) -> Box:
    """The nearest free place of a name beside ``x``, ``y``, or the first one where there is none."""
    width = LETTER * sum(2 if letter in "mwMW@%" or not letter.isascii() else 1 for letter in name)
    middle = min(max(x - width / 2, LEFT), WIDTH - 2 - width)
    tried: list[Box] = []
    for step in range(12):
        for dy in (step * LINE / 2, -step * LINE / 2):
            for left in (x + 7, x - 7 - width, middle):
                tried.append(Box(left, y + dy - LINE / 2, left + width, y + dy + LINE / 2))
    free = (box for box in tried if box.is_inside and not any(box.overlaps(other) for other in taken))
    return next(free, next((box for box in tried if box.is_inside), tried[0]))


def _spread(axis: Axis) -> list[float]:
    """The ticks of a level axis that leave each other's numbers room."""
    kept: list[float] = []
    for tick in axis.within():
        if not kept or axis.at(tick) - axis.at(kept[-1]) >= 24:
            kept.append(tick)
    return kept


def _outline(shape: str, x: float, y: float, r: float = 4) -> str:
    """The path of a mark around ``x``, ``y``."""
    if shape == "square":
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"
    if shape == "diamond":
        return f"M{x:.1f} {y - 1.5 * r:.1f}l{1.5 * r} {1.5 * r}l{-1.5 * r} {1.5 * r}l{-1.5 * r} {-1.5 * r}z"
    if shape == "triangle":
        return f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r} {2 * r}h{-2.4 * r}z"
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"


def _legend(one: Series) -> Markup:
    sign = element("span", _SIGNS[one.shape], class_=f"sign {one.style}")
    return element("span", sign, " ", one.title, class_="key")
