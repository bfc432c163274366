"""Errors that a user sees: one line with the layer, the value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

MAX_QUOTED = 40
_BEFORE_REMEDY = re.compile(r"[:;] ")


class KvtunerError(ValueError):
    """Bad input. The message is one line and says what to do about it."""


def in_parts(message: str) -> tuple[str, str | None]:
    """What is wrong, and the remedy, which a message has after its last colon or semicolon; None where it has none."""
    *before, remedy = _BEFORE_REMEDY.split(message)
    return (message.removesuffix(remedy).rstrip(": ;"), remedy) if before else (message, None)


@contextmanager
def about(what: object) -> Generator[None]:
    """Errors in here name ``what`` first."""
    try:
        yield
    except KvtunerError as err:
        raise KvtunerError(f"{what}: {err}") from err


def quoted(text: str) -> str:
    """A text of outside data for such a line: short, and with ``\\xNN`` for each byte that is no printable ASCII.

    ``kvtuner_quoted`` in ``cpp/plan/kvtuner-strict-json.cpp`` is the same.
    """
    raw = text.encode(errors="surrogatepass")
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in raw[: MAX_QUOTED + 1])
    return f"'{shown[:MAX_QUOTED]}...'" if len(shown) > MAX_QUOTED else f"'{shown}'"


def shown(value: object) -> str:
    """A value of outside data for such a line; ``kvtuner_shown`` is the same."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return str(value)
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list | tuple) else "an object"
