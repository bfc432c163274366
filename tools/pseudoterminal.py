"""Run a command in a terminal of some width, and tell what it writes there and when."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyte

LINES = 50
# of the screen that keeps all that was written
KEPT_LINES = 5000


@dataclass(frozen=True)
class Session:
    """What a command wrote: ``pieces`` of text, each with the seconds since its start. ``seconds``: how long it ran.

    ``columns``: those of its terminal.
    """

    columns: int
    pieces: tuple[tuple[float, str], ...]
    exit_code: int
    seconds: float

    @property
    def raw(self) -> str:
        return "".join(text for _, text in self.pieces)

    @property
    def lines(self) -> list[str]:
        """What stays on the screen, line by line as the terminal breaks them."""
        screen = pyte.Screen(self.columns, KEPT_LINES)
        pyte.Stream(screen).feed(self.raw)
        return "\n".join(line.rstrip() for line in screen.display).rstrip().splitlines()

    @property
    def longest_silence(self) -> float:
        """Seconds."""
        times = [0.0, *(at for at, _ in self.pieces), self.seconds]
        return max(later - earlier for earlier, later in pairwise(times))


def run_in_terminal(
    command: Sequence[str | Path], columns: int, env: Mapping[str, str] | None = None, folder: Path | None = None
) -> Session:
    """Run ``command`` with a terminal of so many ``columns`` for stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    start = time.monotonic()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, env=env, cwd=folder, start_new_session=True, **streams)
    os.close(theirs)
    try:
        pieces = tuple((at - start, text) for at, text in _read(ours))
        return Session(columns, pieces, process.wait(), time.monotonic() - start)
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def _read(terminal: int) -> Iterator[tuple[float, str]]:
    """Text as it comes, until no process has the other end open."""
    rest = b""
    while True:
        select.select([terminal], [], [])
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # how Linux tells the end
            return
        if not data:
            return
        whole = rest + data
        text = whole.decode(errors="ignore")
        rest = whole[len(text.encode()) :]
        yield time.monotonic(), text
