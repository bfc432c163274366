"""Locks of open files: a file that is changed where it stands is read before a change or after it, never during one.

Our own commands hold them for the moment in which they write. Who waits longer goes on without one: other programs may
lock files, too, for hours.
"""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO

READER_SECONDS, WRITER_SECONDS = 5.0, 60.0  # that they wait
_PAUSE_SECONDS = 0.01


@contextmanager
def locked_for_reading(file: BinaryIO) -> Generator[None]:
    """Wait for commands that are changing this file, and keep others from it; nothing where there are no locks."""
    _locked_within(READER_SECONDS, file, fcntl.LOCK_SH)
    try:
        yield
    finally:
        _locked_within(0, file, fcntl.LOCK_UN)


def lock_for_writing(file: BinaryIO) -> bool:
    """Keep all others from this file until it is closed, once they are done; whether that can be done."""
    return _locked_within(WRITER_SECONDS, file, fcntl.LOCK_EX)


def _locked_within(seconds: float, file: BinaryIO, operation: int) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() >= end:
                return False
            time.sleep(_PAUSE_SECONDS)
        else:
            return True
