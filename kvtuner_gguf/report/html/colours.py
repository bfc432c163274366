"""The colour of a cell by its bits, readable on a light and on a dark page."""

from __future__ import annotations

import math

# from 2 bits to 16, even in the logarithm: few bits are warm and light, many are cold and dark
_STOPS = ((253, 224, 120), (247, 165, 72), (222, 96, 88), (157, 62, 121), (88, 52, 128), (36, 40, 92))
_LOW, _HIGH = 2.0, 16.0
# a cell that is lighter has dark text
_MIDDLE = 140


def cell_colours(bits: float) -> tuple[str, str]:
    """The background of a cell with ``bits`` true bits per value, and that of its text."""
    share = math.log(min(max(bits, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    at = share * (len(_STOPS) - 1)
    below = min(int(at), len(_STOPS) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - below)) for a, b in zip(_STOPS[below], _STOPS[below + 1], strict=True)
    )
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > _MIDDLE
    return f"#{red:02x}{green:02x}{blue:02x}", "#1b1b1f" if is_light else "#ffffff"
