"""The layers of a plan by K and V: cells coloured by bits, and beside them what their types cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.html.colours import cell_colours
from kvtuner_gguf.report.html.markup import Markup, element, joined, svg, text, tip

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.prices import Prices

# panels stand side by side where the page is wide; a small model needs fewer
PANELS, FEWEST = 3, 8
ROW, TOP = 20, 18
NUMBER, CELL, BAR = 30, 62, 96
WIDTH = NUMBER + 2 * CELL + 10 + BAR + 62


def heat_map(plan: Plan, prices: Prices | None) -> Markup:
    """All layers of ``plan``; bars of K and V show the ``prices`` of its types, where these are known."""
    costs = [_cost(prices, il, pair) for il, pair in enumerate(plan.pairs)]
    most = max((k + v for k, v in filter(None, costs)), default=0.0)
    n = max(FEWEST, -(-plan.n_layer // PANELS))
    starts = range(0, plan.n_layer, n)
    panels = [_panel(plan, range(first, min(first + n, plan.n_layer)), costs, most) for first in starts]
    return joined(element("div", *panels, class_="panels"), _legend(plan, prices is not None))


Cost = tuple[float, float] | None
"""What K and V of a layer cost in nats, or None where it is not known."""


def _cost(prices: Prices | None, il: int, pair: Pair) -> Cost:
    if prices is None:
        return None
    k, v = prices.k[il].get(pair.k), prices.v[il].get(pair.v)
    return None if k is None or v is None else (k, v)


def _panel(plan: Plan, layers: range, costs: Sequence[Cost], most: float) -> Markup:
    head = [text(NUMBER + CELL / 2, 12, "K", "axis"), text(NUMBER + 1.5 * CELL, 12, "V", "axis")]
    if most:
        head.append(text(NUMBER + 2 * CELL + 10, 12, "price (nats)", "tick"))
    rows = [_row(il, TOP + i * ROW, plan, costs[il], most) for i, il in enumerate(layers)]
    label = f"cache types of layers {layers.start} to {layers.stop - 1}"
    return svg(WIDTH, TOP + len(layers) * ROW, label, *head, *rows)


def _row(il: int, y: float, plan: Plan, cost: Cost, most: float) -> Markup:
    pair = plan.pairs[il]
    keeps = plan.model is None or plan.model.layers[il].keeps
    if not keeps:
        return joined(
            text(NUMBER - 6, y + 14, il, "tick", "end"), text(NUMBER + 4, y + 14, "no cache of its own", "tick")
        )
    cells = [_cell(NUMBER + i * CELL, y, side, name) for i, (side, name) in enumerate((("K", pair.k), ("V", pair.v)))]
    bars = [] if cost is None or not most else _bars(NUMBER + 2 * CELL + 10, y, cost, most)
    return element("g", tip(_words(il, pair, cost)), text(NUMBER - 6, y + 14, il, "tick", "end"), *cells, *bars)


def _words(il: int, pair: Pair, cost: Cost) -> str:
    words = f"layer {il}: K {pair.k}, V {pair.v}"
    return words if cost is None else f"{words}; K costs {cost[0]:.3g} nats, V {cost[1]:.3g}"


def _cell(x: float, y: float, side: str, name: str) -> Markup:
    fill, ink = cell_colours(cache_type(name).bits_per_value)
    box = element("rect", x=x + 1, y=y + 1, width=CELL - 2, height=ROW - 2, rx=3, fill=fill)
    return joined(box, element("text", name, x=x + CELL / 2, y=y + 14, text_anchor="middle", class_="cell", fill=ink))


def _bars(x: float, y: float, cost: tuple[float, float], most: float) -> list[Markup]:
    """K and V one behind the other, and their sum."""
    widths = [BAR * part / most for part in cost]
    parts = [
        element("rect", x=x, y=y + 4, width=widths[0], height=ROW - 8, class_="of-k"),
        element("rect", x=x + widths[0], y=y + 4, width=widths[1], height=ROW - 8, class_="of-v"),
    ]
    return [*parts, text(x + sum(widths) + 4, y + 14, f"{sum(cost):.1e}", "tick")]


def _legend(plan: Plan, is_priced: bool) -> Markup:
    names = {side.name: side.bits_per_value for pair in plan.pairs for side in pair.types}
    keys = [_key(name, bits) for name, bits in sorted(names.items(), key=lambda item: (item[1], item[0]))]
    if is_priced:
        for side in ("K", "V"):
            sign = element("span", "■", class_=f"sign of-{side.lower()}")
            keys.append(element("span", sign, f" price of {side}", class_="key"))
    return element("p", *keys, class_="legend")


def _key(name: str, bits: float) -> Markup:
    fill, ink = cell_colours(bits)
    style = f"background:{fill};color:{ink}"
    return element("span", element("span", name, class_="chip", style=style), f" {bits:g} bits", class_="key")
