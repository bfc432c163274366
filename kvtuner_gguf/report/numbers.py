"""Measured numbers as text."""

from __future__ import annotations

import math

# errors below this are written with an exponent
SMALLEST = 1e-6


def with_error(value: float, error: float | None) -> str:
    """``value`` with its standard ``error``, to the digits that this leaves it: ``0.00281 +- 0.00004``."""
    if not error or not math.isfinite(error):
        return f"{value:.3g}"
    if error < SMALLEST:
        return f"{value:.3g} +- {error:.1g}"
    digits = max(0, -math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def duration(seconds: float) -> str:
    """``12.3 s``, or ``3 min 50 s`` from a minute on."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
