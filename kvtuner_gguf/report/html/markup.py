"""Elements of HTML and SVG, in which every text that is not an element itself is escaped."""

from __future__ import annotations

import html
import re

# what neither HTML nor its readers can do with: control characters but for tab and line ends, and halves of pairs
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup: nothing of it is escaped again."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """``value`` as text of an element or of an attribute; `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(_UNFIT.sub("\ufffd", str(value))))


def joined(*parts: object) -> Markup:
    return Markup("".join(map(escaped, parts)))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """``<tag>`` around ``children``. Attributes are named as in Python: ``class_``, ``stroke_width``; None is left out.

    Numbers have at most two digits behind the point.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(_short(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>") if tag in _VOID else Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def svg(width: float, height: float, label: str, *children: object, class_: str = "") -> Markup:
    """A picture of ``width`` x ``height`` units that takes the width it is given; ``label`` says what it shows."""
    box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria_label": label}
    return element("svg", *children, **box, class_=class_ or None)


def text(x: float, y: float, content: object, class_: str | None = None, anchor: str | None = None) -> Markup:
    """SVG text whose baseline begins, ends or is centred at ``x``, ``y``, as ``anchor`` says."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def shortened(name: str, most: int) -> str:
    """``name`` in at most so many characters: a picture does not break lines."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def tip(content: object) -> Markup:
    """What a browser shows where the pointer rests."""
    return element("title", content)


def table(head: tuple[str, ...], rows: list[tuple[object, ...]], class_: str | None = None) -> Markup:
    """A table in a box of its own, which scrolls where the page is too narrow for it."""
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    names = element("tr", *(element("th", name) for name in head))
    made = element("table", element("thead", names), element("tbody", *body), class_=class_)
    return element("div", made, class_="wide")


def section(title: str, *children: object) -> Markup:
    """A part of the page; empty where it has nothing."""
    shown = [child for child in children if child]
    return element("section", element("h2", title), *shown) if shown else Markup("")


def note(*children: object) -> Markup:
    return element("p", *children, class_="note")
