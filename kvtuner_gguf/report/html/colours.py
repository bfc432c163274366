"""The colour of a cell by its bits, readable on a light and on a dark page.

``kvtuner_cell`` in ``cpp/include/kvtuner-page.h`` follows these numbers: what changes here changes there.
"""

from __future__ import annotations

import math

# from 2 bits to 16, even in the logarithm: few bits are warm and light, many are cold and dark
_STOPS = ((253, 224, 120), (247, 165, 72), (222, 96, 88), (157, 62, 121), (88, 52, 128), (36, 40, 92))
_LOW, _HIGH = 2.0, 16.0
# how light red, green and blue are; a cell that is lighter than the middle has dark text
_LIGHT = (0.299, 0.587, 0.114)
_MIDDLE = 140
_DARK_INK, _LIGHT_INK = "#1b1b1f", "#ffffff"


def cell_colours(bits: float) -> tuple[str, str]:
    """The background of a cell with ``bits`` true bits per value, and that of its text."""
    share = math.log(min(max(bits, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    at = share * (len(_STOPS) - 1)
    below = min(int(at), len(_STOPS) - 2)
    rgb = [round(a + (b - a) * (at - below)) for a, b in zip(_STOPS[below], _STOPS[below + 1], strict=True)]
    is_light = sum(share * part for share, part in zip(_LIGHT, rgb, strict=True)) > _MIDDLE
    return "#" + "".join(f"{part:02x}" for part in rgb), _DARK_INK if is_light else _LIGHT_INK
