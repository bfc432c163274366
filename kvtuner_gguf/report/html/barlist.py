"""Bars under each other in groups, each with its name before it and its number behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtuner_gguf.report.html.markup import Markup, element, shortened, svg, text, tip

WIDTH, ROW, HEAD, GAP = 400, 18, 20, 8
NAME, BAR = 126, 152
SHOWN, HEAD_SHOWN = 18, 40


@dataclass(frozen=True)
class Bar:
    """``share`` is how far the bar reaches, 0 to 1; ``said`` stands behind it."""

    name: str
    share: float
    said: str
    style: str


def bar_list(groups: Sequence[tuple[str, Sequence[Bar]]], label: str) -> Markup:
    """Each group of bars under its title."""
    parts: list[Markup] = []
    y = 0.0
    for title, bars in groups:
        parts.append(text(0, y + 14, shortened(title, HEAD_SHOWN), "head"))
        y += HEAD
        for bar in bars:
            parts.append(_bar(bar, y))
            y += ROW
        y += GAP
    return element("figure", svg(WIDTH, y, label, *parts, class_="chart"))


def _bar(bar: Bar, y: float) -> Markup:
    width = max(BAR * min(bar.share, 1), 1)
    return element(
        "g",
        tip(f"{bar.name}: {bar.said}"),
        text(NAME - 6, y + 13, shortened(bar.name, SHOWN), "tick", "end"),
        element("rect", x=NAME, y=y + 3, width=width, height=ROW - 6, rx=2, class_="mark"),
        text(NAME + width + 5, y + 13, bar.said, "tick"),
        class_=bar.style,
    )
