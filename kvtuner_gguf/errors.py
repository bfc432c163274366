"""Errors that a user sees: one line with the layer, the value and the remedy."""

from __future__ import annotations


class KvtunerError(ValueError):
    """Bad input. The message is one line and says what to do about it."""
